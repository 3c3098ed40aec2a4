"""The verbs: parse, call, print. No logic lives here.

Results go to stdout, progress and messages to stderr. Bad input is one line and exit code 2.
Heavy imports happen inside the verb that needs them.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter

from whiten import __version__
from whiten.allocator import keep_freed_memory
from whiten.errors import ConfigError, WhitenError, nearest
from whiten.spec import SCHEMES, DistillSpec

app = App(
    name="whiten",
    version=__version__,
    help="Distil frozen image-embedding models into one small, fast student for visual search.",
    version_flags=["--version"],
    print_error=False,
    exit_on_error=False,
    result_action="return_value",
    default_parameter=Parameter(consume_multiple=True),  # --teachers A B
    suppress_keyboard_interrupt=False,  # `main` says how to go on
)


@app.command
def teachers(
    pattern: str = "", /, *, as_json: Annotated[bool, Parameter("--json")] = False
) -> None:
    """List the models that can teach, and describe one.

    Args:
        pattern: part of a name lists what fits; a whole URI that can be opened is described.
        as_json: print JSON.
    """
    from whiten.teachers.listing import describe, list_teachers, names_one

    found = list_teachers(pattern)
    if names_one(pattern, found):
        facts = describe(pattern)
        _print_json(facts) if as_json else _print_facts(facts)
        return
    if as_json:
        _print_json(found)
        return
    for uri in found:
        print(uri)
    if not pattern:
        _say("other models: name part of one (whiten teachers resnet), or write a URI:")
        for name, (what, example) in SCHEMES.items():
            _say(f"  {name + ':':13} {what}, for example {example}")


@app.command
def embed(
    images: Path,
    /,
    *,
    teacher: str,
    out: Path,
    views: int = 1,
    seed: int = 0,
    precision: str = "32",
    dtype: str = "float32",
    workers: int = 2,
    as_json: Annotated[bool, Parameter("--json")] = False,
) -> None:
    """Embed images into a store; interrupted or extended, it goes on where it was.

    Args:
        images: a folder, or a CSV or Parquet with columns path,group.
        teacher: the model's URI.
        out: the store's folder.
        views: views of each image; the first is the whole image, the others are random crops.
        seed: of the random views.
        precision: 32 or bf16.
        dtype: float32, or float16 for half the disk space.
        workers: threads that decode images.
        as_json: print the summary as JSON.
    """
    from whiten.devices import best_device
    from whiten.embed import embed as embed_items
    from whiten.media import find_items
    from whiten.progress import progress
    from whiten.spec import ViewPlan
    from whiten.teachers import open_teacher

    if precision not in ("32", "bf16"):
        raise ConfigError(f"precision must be 32 or bf16, not {precision!r}")
    for name, value in (("views", views), ("workers", workers)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, not {value}")
    items = find_items(images)
    model = open_teacher(teacher).to(best_device())
    with progress(f"embed {model.name}") as update:
        store = embed_items(
            items,
            model,
            out,
            views=range(views),
            plan=ViewPlan(seed=seed),
            precision=precision,
            dtype=dtype,
            workers=workers,
            progress=update,
        )
    summary = {
        "store": str(out),
        "embeddings": len(store),
        "dim": store.dim,
        "skipped": [asdict(skip) for skip in store.skipped],
    }
    if as_json:
        _print_json(summary)
        return
    print(f"{out}: {len(store):,} embeddings of {store.dim} dimensions")
    _list_skipped(store.skipped)


@app.command
def distill(
    images: Path | None = None,
    /,
    *,
    out: Path,
    spec: Annotated[DistillSpec | None, Parameter(name="*")] = None,
    config: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    embeddings: Path | None = None,
    test: Path | None = None,
) -> None:
    """Distil teachers into a student, and report what was gained.

    Args:
        images: a folder, or a CSV or Parquet with columns path,group.
        out: the run's folder; the student will be OUT/student.
        config: a YAML file with any of the options; those given here go before it.
        resume: go on with the run in OUT; nothing else needs to be repeated.
        overwrite: delete the run in OUT first.
        embeddings: where teachers' embeddings are kept, to share them between runs.
        test: grouped images that were not trained on, for the table in the report.
    """
    from whiten.distill import distill as run
    from whiten.report import format_table
    from whiten.run_report import report_run, verdicts

    options = {} if spec is None else spec.to_mapping()
    if images is None and not resume:
        raise ConfigError("name the images: whiten distill IMAGES --teachers URI --out RUN")
    teachers = options.pop("teachers", [])
    result = run(
        images or "",
        teachers,
        out=out,
        resume=resume,
        overwrite=overwrite,
        embeddings=embeddings,
        **options,
    )
    _list_skipped(result.skipped)
    report, rows = report_run(out, test=test, show_progress=True)
    if rows:
        print(format_table(rows), *verdicts(rows), sep="\n")
    print(f"student  {result.student}\nreport   {report}")


@app.command
def evaluate(
    encoder: str,
    gallery: Path,
    /,
    *,
    queries: Path | None = None,
    whiten_on: Path | None = None,
    whiten_dim: int = 256,
    shrinkage: float = 0.1,
    embeddings: Path | None = None,
    as_json: Annotated[bool, Parameter("--json")] = False,
) -> None:
    """Measure retrieval: images of a group should find each other.

    Args:
        encoder: a teacher's URI, a student's folder, or fuse:raw:URI,URI and
            fuse:whitened:URI,URI or fuse:whitened:RUN.
        gallery: a folder with a subfolder a group, or a table with columns path,group.
        queries: likewise; by default each image searches all the others.
        whiten_on: images to fit the whitening of fuse:whitened:URI,URI on.
        whiten_dim: dimensions that this whitening keeps.
        shrinkage: of this whitening.
        embeddings: where embeddings are kept between calls.
        as_json: print JSON.
    """
    from whiten.encoder import load
    from whiten.evaluate import evaluate as run

    model = load(
        encoder,
        whiten_on=whiten_on,
        whiten_dim=whiten_dim,
        shrinkage=shrinkage,
        cache=embeddings,
    )
    result = run(model, gallery, queries=queries, cache=embeddings, show_progress=True)
    if as_json:
        _print_json(result.to_json())
        return
    print(f"{result.name}: {len(result.query_ids):,} queries, {result.gallery_size:,} images")
    for name, figure in result.figures.items():
        print(f"  {name:10} {figure.value:.4f}  [{figure.low:.4f}, {figure.high:.4f}]")
    if result.without_positives:
        _say(f"{result.without_positives} queries left out: nothing else of their group is there")
    _list_skipped(result.skipped)


@app.command
def search(
    query: Path,
    /,
    *,
    student: str,
    images: Annotated[Path, Parameter("--in")],
    index: Path | None = None,
    k: int = 10,
    as_json: Annotated[bool, Parameter("--json")] = False,
    paths_only: bool = False,
    open_page: Annotated[bool, Parameter("--open")] = False,
) -> None:
    """Search a folder of images by an image.

    Args:
        query: the image to look for.
        student: the student's folder, or any model's URI.
        images: where to search: a folder or a table of paths.
        index: where the index is kept; by default beside the student's run, one for each folder.
        k: how many hits.
        as_json: print JSON.
        paths_only: print the paths alone, one a line.
        open_page: write a page of the hits and open it in the browser.
    """
    from whiten.searching import search_folder, write_hits_page

    found = search_folder(query, student, images, index=index, k=k, show_progress=True)
    if as_json:
        _print_json([asdict(match) for match in found.matches])
    else:
        for match in found.matches:
            print(match.path if paths_only else f"{match.score:.4f}  {match.path}")
    if open_page:
        import webbrowser

        page = write_hits_page(query, found)
        _say(f"page     {page}")
        webbrowser.open(page.as_uri())
    _list_skipped(found.skipped)


@app.command
def report(run: Path, /, *, test: Path | None = None) -> None:
    """Write a run's report again, with figures on grouped test images if some are named.

    Args:
        run: the folder of a finished run.
        test: grouped images that were not trained on.
    """
    from whiten.report import format_table
    from whiten.run_report import report_run

    path, rows = report_run(run, test=test, show_progress=True)
    if rows:
        print(format_table(rows))
    print(f"report   {path}")


@app.command
def demo(*, out: Path = Path("runs/demo"), quick: bool = False) -> None:
    """Distil three real networks on the bundled images and report what came out.

    Args:
        out: the demo's folder.
        quick: a few seconds' version, whose numbers mean nothing.
    """
    from whiten.demo import conclusions, next_commands, run_demo
    from whiten.report import format_table

    rows, page = run_demo(out, quick=quick)
    print(format_table(rows), *conclusions(rows), f"report   {page}", "", "next:", sep="\n")
    for command in next_commands(out):
        print(f"  {command}")


@app.command
def doctor(*, as_json: Annotated[bool, Parameter("--json")] = False) -> None:
    """Say what is installed, which devices there are, and what would make it faster."""
    from whiten.doctor import diagnose

    found = diagnose()
    if as_json:
        _print_json(asdict(found))
        return
    _print_facts(found.facts)
    for line in found.advice:
        print(f"- {line}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the command `whiten`."""
    warnings.showwarning = _show_warning
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    keep_freed_memory()
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # file names that are not text stay whole
    try:
        app(with_config(tokens))
    except (WhitenError, CycloptsError) as error:
        _fail(_one_line(error))
    except KeyboardInterrupt:
        _fail(
            "interrupted: what is done is kept, the same command goes on (distill: with --resume)",
            130,
        )
    except BrokenPipeError:  # `whiten … | head` is no error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        _fail(
            f"{error.strerror or error}:{where}; what is done is kept, make room or give access "
            "and run again"
        )


def with_config(tokens: list[str]) -> list[str]:
    """Put the options of `--config FILE` before those of the command line, which then win.

    Raises:
        ConfigError: the file is missing, no mapping, or has an unknown option.
    """
    if tokens[:1] != ["distill"]:
        return tokens
    named = [tokens[i + 1] for i, token in enumerate(tokens[:-1]) if token == "--config"]
    named += [token.partition("=")[2] for token in tokens if token.startswith("--config=")]
    if not named:
        return tokens
    path = Path(named[0])
    import yaml

    try:
        options = yaml.safe_load(path.read_text()) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {path}: {_one_line(error)}") from error
    known = set(DistillSpec.__dataclass_fields__)
    if not isinstance(options, dict):
        raise ConfigError(f"{path} must hold options, one `name: value` a line")
    given = {token.partition("=")[0] for token in tokens if token.startswith("--")}
    more: list[str] = []
    for name, value in options.items():
        if name in ("images", "version"):  # a run's own config.yaml will do
            continue
        if name not in known:
            raise ConfigError(f"{path}: unknown option {name!r}{nearest(str(name), known)}")
        flag = "--" + name.replace("_", "-")
        negative = "--no-" + name.replace("_", "-")
        if flag in given or negative in given or value is None:
            continue
        if isinstance(value, bool):
            more.append(flag if value else negative)
        else:
            more += [flag, *map(str, value if isinstance(value, list) else [value])]
    return [*tokens, *more]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _fail(message: str, code: int = 2) -> None:
    _say(f"whiten: {message}")
    sys.exit(code)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    _say(f"whiten: warning: {' '.join(str(message).split())}")


def _print_json(value: Any) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    # Half a surrogate pair stands for a byte of a file name that is not text: JSON can escape it.
    print(text.encode("utf-8", "backslashreplace").decode())


def _print_facts(facts: dict[str, Any]) -> None:
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:{width}}  {value}")


def _list_skipped(skipped: Sequence[Any]) -> None:
    if skipped:
        _say(f"{len(skipped)} image{'' if len(skipped) == 1 else 's'} skipped:")
    for skip in skipped:
        _say(f"  {skip.id}: {skip.reason}")


if __name__ == "__main__":
    main()
