"""What is a student worth on a source that it has never seen?

`drawings` leaves each design team of the bundled drawings out in turn: nothing is fitted on its
drawings. Each drawing of the team then queries all drawings of the test split, whose emoji never
train either; the same emoji by the other teams is right. Seen queries are those of the other teams.

`photos` trains on one kind of photograph and tests on another, and back. Half of the groups of each
kind train and the other half test; each test photo queries all others of its kind. The table has
columns `path,group`, and a group begins with its kind: `product:…`; landmarks count as scenes.

Prints a table, in points: the mean of the sources and seeds, with the interval over groups.

    python studies/unseen.py drawings --work FOLDER --seeds 0 1 2
    python studies/unseen.py photos --table TABLE --work FOLDER --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from trials import WEAK

from whiten.datasets.collection import Items
from whiten.datasets.finding import find_items
from whiten.distillation.distill import distill
from whiten.embedding.encoder import Encoder
from whiten.embedding.opening import load, load_fusions
from whiten.embedding.rows import embed_rows
from whiten.evaluation.run_encoders import run_encoders
from whiten.metrics import bootstrap_interval
from whiten.runs.folder import RunFolder

KINDS = {"product": "products", "scene": "scenes", "landmark": "scenes"}
PAIRS = {"views": "no labels", "groups": "groups"}
Found = dict[str, np.ndarray]  # per metric, one value per query


@dataclass(frozen=True)
class Held:
    """One source that is left out.

    Attributes:
        source: its name in the column `source` of the training table.
        train: the table of all training images, those of the source included.
        seen, unseen: the images to test on, and which of them query.
    """

    source: str
    train: Path
    seen: tuple[Items, np.ndarray]
    unseen: tuple[Items, np.ndarray]


def drawings(work: Path) -> Iterator[Held]:
    """Yield each design team, left out."""
    with resources.as_file(resources.files("whiten") / "demo" / "data" / "emoji.parquet") as path:
        rows = pq.read_table(path, columns=["group", "vendor", "split", "image"]).to_pylist()
    for split in ("train", "test"):
        own = [row for row in rows if row["split"] == split]
        names = [f"{split}/{row['group']}/{row['vendor']}.webp" for row in own]
        for name, row in zip(names, own, strict=True):
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            (work / name).write_bytes(row["image"])
        columns = {"group": [r["group"] for r in own], "source": [r["vendor"] for r in own]}
        pq.write_table(pa.table({"path": names, **columns}), work / f"{split}.parquet")
    test = find_items(work / "test.parquet")
    team = np.array([Path(name).stem for name in test.ids.to_pylist()])
    for source in np.unique(team):
        queries = team == source
        yield Held(str(source), work / "train.parquet", (test, ~queries), (test, queries))


def photos(work: Path, table: Path) -> Iterator[Held]:
    """Yield each kind of photograph, left out."""
    items = find_items(table)
    items = items.take(items.groups.is_valid().to_numpy(zero_copy_only=False))
    groups = np.array(items.groups.to_pylist(), object)
    prefixes = [group.partition(":")[0] for group in groups]
    kinds = np.array([KINDS.get(prefix, prefix) for prefix in prefixes], object)
    every = np.unique(groups)
    tested = np.random.default_rng(0).permutation(every)[: len(every) // 2]
    trains = ~np.isin(groups, tested)
    listed = {
        "path": [str(Path(item.path).resolve()) for item in items.take(trains)],
        "group": groups[trains],
        "source": kinds[trains],
    }
    pq.write_table(pa.table(listed), work / "train.parquet")
    tests = {kind: items.take(~trains & (kinds == kind)) for kind in np.unique(kinds)}
    for kind in tests:
        [other] = [other for other in tests if other != kind]
        seen, unseen = ((tests[k], np.ones(len(tests[k]), bool)) for k in (other, kind))
        yield Held(kind, work / "train.parquet", seen, unseen)


def measure(encoder: Encoder, items: Items, queries: np.ndarray, cache: Path) -> Found:
    """Return each query's average precision and reciprocal rank; NaN without a positive."""
    kept, vectors, _ = embed_rows(encoder, items, cache=cache)
    assert len(kept) == len(items), "every test image must be readable"
    _, groups = np.unique(np.array(items.groups.to_pylist(), object), return_inverse=True)
    similarity = vectors[queries] @ vectors.T
    similarity[np.arange(len(similarity)), np.flatnonzero(queries)] = -np.inf
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :-1]
    hits = groups[order] == groups[queries][:, None]
    ranks = np.arange(1, hits.shape[1] + 1)
    found = hits.sum(axis=1)
    with np.errstate(invalid="ignore"):
        precision = (hits.cumsum(axis=1) / ranks * hits).sum(axis=1) / found
    reciprocal = np.where(found > 0, 1 / (hits.argmax(axis=1) + 1), np.nan)
    return {"mAP": precision, "MRR": reciprocal}


def models(
    held: Held, work: Path, seed: int, options: argparse.Namespace
) -> Iterator[tuple[str, Encoder]]:
    """Distil without the source, and yield what the run starts from and ends with."""
    runs = {}
    for pairs in options.pairs:
        trained = [("student", options.epochs)] if options.epochs != 0 else []
        for name, epochs in (("closed form", 0), *trained):
            run = RunFolder(work / f"{held.source}-{pairs}-{name.replace(' ', '-')}-{seed}")
            distill(
                held.train,
                options.teachers,
                run.root,
                student=options.student,
                cache=work / "embeddings",
                resume=True,
                show_progress=False,
                epochs=epochs,
                pairs=pairs,
                seed=seed,
                holdout_source=[held.source],
            )
            runs[f"{name}, {PAIRS[pairs]}"] = run
    first = next(iter(runs.values()))
    *teachers_and_starts, _ = run_encoders(first, load_fusions(first.root))
    for encoder, _, name in teachers_and_starts:
        yield name, encoder
    for name, run in runs.items():
        yield name, load(run.student)


def table_of(scores: dict[tuple[str, str], list[tuple[str, Found, np.ndarray]]]) -> list[dict]:
    """Average over sources and seeds; intervals draw whole groups."""
    rows = []
    for name in dict.fromkeys(name for name, _ in scores):
        row: dict = {"name": name}
        for which in ("unseen", "seen"):
            parts = scores[name, which]
            groups = np.concatenate([groups for *_, groups in parts])
            for metric in ("MRR", "mAP"):
                values = np.concatenate([found[metric] for _, found, _ in parts])
                known = ~np.isnan(values)
                low, high = bootstrap_interval(values[known], groups=groups[known])
                row[f"{which} {metric}"] = [float(values[known].mean()), low, high]
                row[f"{which} {metric}, each"] = {
                    source: float(
                        np.mean([np.nanmean(f[metric]) for s, f, _ in parts if s == source])
                    )
                    for source in dict.fromkeys(source for source, *_ in parts)
                }
        rows.append(row)
    return rows


def markdown(rows: list[dict], each: str) -> str:
    """Format the rows; `each` is the metric that is shown per source left out."""
    metrics = [f"{which} {metric}" for which in ("unseen", "seen") for metric in ("MRR", "mAP")]
    sources = list(rows[0][f"unseen {each}, each"])
    heads = ["model", *metrics, *(f"unseen {each}, {source}" for source in sources)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = ["{:.1f} [{:.1f}, {:.1f}]".format(*(100 * x for x in row[m])) for m in metrics]
        cells += [f"{100 * row[f'unseen {each}, each'][source]:.1f}" for source in sources]
        lines.append(f"| {' | '.join([row['name'], *cells])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("protocol", choices=["drawings", "photos"])
    parser.add_argument("--work", type=Path, required=True, help="folder of images, runs, caches")
    parser.add_argument("--table", type=Path, help="the photos: columns path,group")
    parser.add_argument("--teachers", nargs="+", default=WEAK)
    parser.add_argument("--size", type=int, help="of the student; 64 for drawings, 160 for photos")
    parser.add_argument("--epochs", type=int, help="0: closed form; by default as distill chooses")
    parser.add_argument("--pairs", nargs="+", default=["views"], choices=list(PAIRS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--out", type=Path, help="JSON; by default results/unseen-PROTOCOL.json")
    options = parser.parse_args()
    if options.protocol == "photos" and options.table is None:
        parser.error("photos needs --table")
    fit, size = ("squash", 64) if options.protocol == "drawings" else ("crop", 160)
    options.student = f"demo:efficientnet-lite0?size={options.size or size}&fit={fit}"
    if options.protocol == "photos" and options.teachers == WEAK:
        options.teachers = [uri.replace("fit=squash", "fit=crop") for uri in WEAK]
    options.work.mkdir(parents=True, exist_ok=True)
    if options.protocol == "drawings":
        left_out = list(drawings(options.work))
    else:
        left_out = list(photos(options.work, options.table))
    scores: dict[tuple[str, str], list[tuple[str, Found, np.ndarray]]] = {}
    for seed in options.seeds:
        for held in left_out:
            for name, encoder in models(held, options.work, seed, options):
                for which, (items, queries) in (("unseen", held.unseen), ("seen", held.seen)):
                    groups = np.array(items.groups.to_pylist(), object)[queries].astype(str)
                    cache = options.work / "embeddings-test"
                    found = measure(encoder, items, queries, cache)
                    scores.setdefault((name, which), []).append((held.source, found, groups))
            print(f"seed {seed}, without {held.source}: done", flush=True)
    rows = table_of(scores)
    print(markdown(rows, "MRR" if options.protocol == "drawings" else "mAP"))
    out = options.out or Path(__file__).parent / "results" / f"unseen-{options.protocol}.json"
    asked = {
        name: getattr(options, name) for name in ("teachers", "student", "epochs", "pairs", "seeds")
    }
    out.write_text(json.dumps({"options": asked, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
