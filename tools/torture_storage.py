"""Embed, distil, index and search in an S3 server that fails, killed again and again.

    python tools/torture_storage.py --images 20000 --folder PHOTOS --kills 30 --faults 200

The server is moto's, on loopback. Images in tar shards and in Parquet must give the embeddings, the
student and the hits of the same images in a folder, without kills and faults: nothing lost, nothing
twice, nothing wrong. Exits with 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from faulty_s3 import FaultyS3, serving
from shard_makers import samples, write_parquets, write_tars

STUDENT = ["--student", "timm:test_efficientnet?pretrained=0&size=64", "--dim", "8"]
FAULTS = ("500", "503", "cut", "drop", "slow")
_PASSING = "run again"  # what the one line says after a failure that may pass


class Torture:
    """One sequence of kills and faults.

    Attributes:
        kills, faults: how many are left; they are made while the verbs run.
    """

    def __init__(self, s3: FaultyS3, model: str, kills: int, faults: int, seed: int) -> None:
        self._s3, self._model = s3, model
        self.kills, self.faults = kills, faults
        self._random = random.Random(seed)
        self._env = {
            **os.environ,
            "AWS_ENDPOINT_URL": s3.url,
            "AWS_ACCESS_KEY_ID": "anyone",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def calm(self, *arguments: object) -> float:
        """Run a command undisturbed; returns its seconds."""
        self._s3.plan = lambda method, path: ""
        began = time.monotonic()
        done = self._start(*arguments)
        assert done.returncode == 0, done.stderr
        return time.monotonic() - began

    def rough(self, seconds: float, kills: int, faults: int, *arguments: object) -> None:
        """Run a command again until it is done; it is killed, and its requests fail, at random.

        If it is done before all kills, it begins anew.

        Args:
            seconds: how long it takes undisturbed.
        """
        left = [faults]

        def plan(method: str, path: str) -> str:
            if not left[0] or self._random.random() > 0.5:
                return ""
            left[0] -= 1
            self.faults -= 1
            return self._random.choice(FAULTS)

        self._s3.plan = plan
        while True:
            limit = self._random.uniform(0.3, 1.0) * seconds if kills else None
            resume = ["--resume"] if _is_begun(arguments) else []
            done = self._start(*arguments, *resume, limit=limit)
            if done.returncode == 0:
                if not kills:
                    break
                self._remove(str(arguments[arguments.index("--out") + 1]))
            elif done.returncode < 0:
                kills -= 1
                self.kills -= 1
            elif _PASSING not in done.stderr:
                raise AssertionError(done.stderr)
        self._s3.plan = lambda method, path: ""

    def _start(
        self, *arguments: object, limit: float | None = None
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "whiten", *map(str, arguments)]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, env=self._env, stdout=pipe, stderr=pipe, text=True) as one:
            try:
                out, err = one.communicate(timeout=limit)
            except subprocess.TimeoutExpired:
                one.kill()
                out, err = one.communicate()
        return subprocess.CompletedProcess(command, one.returncode, out, err)

    def _remove(self, place: str) -> None:
        if not place.startswith("s3://"):
            shutil.rmtree(place)
            return
        for key in self._keys(f"{place.removeprefix('s3://photos/')}/"):
            self._s3.client().delete_object(Bucket="photos", Key=key)

    def _keys(self, prefix: str) -> list[str]:
        client = self._s3.client()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket="photos", Prefix=prefix)
        return [one["Key"] for page in pages for one in page.get("Contents", [])]

    def embeddings(self, prefix: str) -> dict[str, list[bytes]]:
        """Return the embeddings of a store in the server, by content hash."""
        client = self._s3.client()
        found: dict[str, list[bytes]] = {}
        for key in self._keys(prefix):
            if key.endswith(".parquet"):
                body = client.get_object(Bucket="photos", Key=key)["Body"].read()
                _gather(pq.read_table(pa.BufferReader(body)), found)
        return found


def _gather(table: pa.Table, found: dict[str, list[bytes]]) -> None:
    rows = table.select(["content_hash", "embedding"]).to_pylist()
    for row in rows:
        vector = np.array(row["embedding"], np.float32).tobytes()
        found.setdefault(row["content_hash"], []).append(vector)


def _is_begun(arguments: tuple[object, ...]) -> bool:
    """Return whether a distillation has a checkpoint, from which only --resume goes on."""
    if arguments[0] != "distill":
        return False
    return (Path(str(arguments[arguments.index("--out") + 1])) / "config.yaml").is_file()


def torture(
    folder: Path,
    work: Path,
    *,
    model: str,
    kills: int,
    faults: int,
    seed: int = 0,
    layouts: Sequence[str] = ("tar", "parquet"),
) -> dict[str, object]:
    """Go the whole way on images in tar shards and in Parquet; returns what was counted.

    Raises:
        AssertionError: something is lost, twice or wrong.
    """
    images = samples(folder)
    shards = max(3, len(images) // 1000)
    writers = {"tar": write_tars, "parquet": write_parquets}
    sources = {name: writers[name](work / name, images, shards) for name in layouts}
    with serving() as s3:
        s3.client().create_bucket(Bucket="photos")
        for name, place in sources.items():
            for path in place.iterdir():
                s3.put("photos", f"{name}/{path.name}", path.read_bytes())
        run = Torture(s3, model, kills, faults, seed)
        alone = run.calm("embed", folder, "--model", model, "--out", work / "folder")
        wanted: dict[str, list[bytes]] = {}
        for path in sorted((work / "folder").glob("part-*.parquet")):
            _gather(pq.read_table(path), wanted)
        verbs = 3 * len(sources)
        shares = iter([(_share(kills, n, verbs), _share(faults, n, verbs)) for n in range(verbs)])
        for name in sources:
            source, out = f"s3://photos/{name}", f"s3://photos/store-{name}"
            embed = ["embed", source, "--model", model, "--out"]
            run.rough(alone, *next(shares), *embed, out)
            assert {k: sorted(v) for k, v in run.embeddings(f"store-{name}/").items()} == {
                k: sorted(v) for k, v in wanted.items()
            }, f"{name}: other embeddings than those of the folder"
            distill = ["distill", source, "--teachers", model, *STUDENT, "--epochs", "0", "--out"]
            seconds = run.calm(*distill, work / f"run-{name}")
            run.rough(seconds, *next(shares), *distill, work / f"rough-{name}")
            ours, theirs = (
                (work / f"{kind}-{name}" / "student" / "model.safetensors").read_bytes()
                for kind in ("rough", "run")
            )
            assert ours == theirs, f"{name}: another student than without kills and faults"
            indexes = (f"index-folder-{name}", f"index-{name}")
            index = ["index", "--kind", "exact", "--out"]
            seconds = run.calm(*index, work / indexes[0], work / "folder")
            last_kills, last_faults = next(shares)
            if name == list(sources)[-1]:
                last_faults = run.faults  # and those that no request was left for
            run.rough(seconds, last_kills, last_faults, *index, work / indexes[1], out)
            hits = []
            query = next(path for path in sorted(folder.rglob("*.*")) if path.is_file())
            for index_name in indexes:
                done = run._start(
                    "search", query, "--index", work / index_name, "--model", model, "--json"
                )
                hits.append([hit["score"] for hit in json.loads(done.stdout)])
            assert hits[0] == hits[1], f"{name}: other hits than in the folder"
        return {
            "images": len(images),
            "shards": shards,
            "kills": kills - run.kills,
            "faults": faults - run.faults,
            "requests": len(s3.requests),
        }


def _share(total: int, number: int, parts: int) -> int:
    """How many of them are the part's, where all parts have as many, to one."""
    return total * (number + 1) // parts - total * number // parts


def make_images(folder: Path, count: int, first: int = 0) -> Path:
    """Write images of random blobs, in folders of ten.

    Args:
        first: the number of the first one; those before it are left out.
    """
    for number in range(first, count):
        blobs = np.random.default_rng(number).integers(0, 256, (5, 6, 3), dtype=np.uint8)
        path = folder / f"{number // 10:05d}" / f"{number % 10}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(blobs).resize((96, 80)).save(path)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=60, help="how many, most of them made")
    parser.add_argument("--folder", type=Path, help="real images that are among them")
    parser.add_argument("--model", default="demo:mobilenetv2")
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="whiten-") as temporary:
        work = Path(temporary)
        folder = work / "images"
        if options.folder:
            shutil.copytree(options.folder, folder)
        make_images(folder, options.images, first=len(samples(folder)))
        found = torture(
            folder,
            work,
            model=options.model,
            kills=options.kills,
            faults=options.faults,
            seed=options.seed,
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
