"""A served index under load from another process: requests a second, latencies, errors, memory.

    python benchmarks/serve.py --out benchmarks/results/serve.json

`whiten serve` runs in a process of its own, and so do the clients: threads that keep their
connection, each sending its next request when it has its answer. Uploads are photographs of one
megapixel and of 224 pixels, and searches by id need no model. The model is a ResNet-18 at 224 px
with random weights, in torch and exported to ONNX in fp32; the index holds random vectors and the
few images that exist. Both share the machine's cores, so that a service alone is faster than this.
One run sends everything in turn, damaged files too, and watches the service's resident memory;
another adds an image after every nine searches by id.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
from photographs import photograph
from side_by_side import Comparison, Report, arguments

BACKBONE = "timm:resnet18?pretrained=0&size=224"
DIM = 512
PHOTOGRAPHS = 16
ADDED = 200
TOKEN = "of-this-benchmark"
CLIENTS = (1, 8, 32)
BUSY = 503  # an answer that is meant: come back later


@dataclass(frozen=True)
class Request:
    """What a client sends, and which statuses it expects."""

    method: str
    path: str
    body: bytes = b""
    kind: str = ""
    expected: tuple[int, ...] = (200, BUSY)


def upload(
    data: bytes, expected: tuple[int, ...] = (200, BUSY), *, path: str = "/search"
) -> Request:
    head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'
    body = head + data + b"\r\n--b--\r\n"
    return Request("POST", path, body, "multipart/form-data; boundary=b", expected)


# --- the clients, in a process of their own -------------------------------------------------


@dataclass(frozen=True)
class Load:
    """What clients have seen: seconds of each answer, statuses, and what was not expected."""

    latencies: list[float]
    statuses: dict[int, int]
    errors: int
    seconds: float


def send(url: str, requests: Sequence[Request], clients: int, count: int) -> Load:
    address = urlsplit(url).netloc
    latencies: list[float] = []
    statuses: Counter[int] = Counter()
    errors, taken, lock = 0, 0, threading.Lock()

    def work() -> None:
        nonlocal errors, taken
        connection = http.client.HTTPConnection(address, timeout=120)
        while True:
            with lock:
                number, taken = taken, taken + 1
            if number >= count:
                break
            request = requests[number % len(requests)]
            headers = {"Authorization": f"Bearer {TOKEN}"}
            if request.kind:
                headers["Content-Type"] = request.kind
            began = time.perf_counter()
            try:
                connection.request(request.method, request.path, request.body or None, headers)
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException):
                connection.close()
                with lock:
                    errors += 1
                continue
            elapsed = time.perf_counter() - began
            with lock:
                latencies.append(elapsed)
                statuses[answer.status] += 1
                errors += answer.status not in request.expected
        connection.close()

    threads = [threading.Thread(target=work) for _ in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Load(latencies, dict(statuses), errors, time.perf_counter() - start)


# --- the service ----------------------------------------------------------------------------


def build_index(root: Path, size: int) -> None:
    """Photographs with their true vectors, and as many random ones as it takes."""
    import torch

    from whiten.export import export
    from whiten.index import Index
    from whiten.index.rows import Block
    from whiten.models.card import model_card
    from whiten.models.student import build_student, save_student

    torch.manual_seed(0)
    net, config = build_student(BACKBONE, dim=DIM)
    save_student(net.eval(), config, root / "student", model_card(config))
    export(root / "student", root / "exported")
    for number in range(PHOTOGRAPHS):
        path = root / "images" / f"{number:02d}.jpg"
        path.parent.mkdir(exist_ok=True)
        photograph(number).save(path, quality=90)
    index = Index.build(str(root / "student"), root / "images", root / "index")
    rng = np.random.default_rng(0)

    def blocks() -> Iterator[Block]:
        for start in range(PHOTOGRAPHS, size, 10_000):
            names = [f"random/{n}" for n in range(start, min(size, start + 10_000))]
            vectors = rng.standard_normal((len(names), DIM)).astype(np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            texts = {"id": names, "path": [b"/none"] * len(names)}
            texts |= {name: [""] * len(names) for name in ("content_hash", "stamp", "group")}
            rows = pa.table(texts | {"frame_ms": pa.nulls(len(names), pa.int64())})
            yield Block(rows.cast(index.facts.schema()), vectors)

    backend = index._backend
    with backend.writing():
        backend.write(index.facts, [], blocks())


@contextmanager
def serving(root: Path, *options: str) -> Iterator[tuple[str, int]]:
    """The URL of a service and its process id."""
    command = ("-m", "whiten", "serve", str(root / "index"), "--port", "0", *options)
    process = subprocess.Popen(
        [sys.executable, *command],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "WHITEN_TOKEN": TOKEN},
    )
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        found = re.search(r"http://\S+/", line)
        if found is None:
            raise SystemExit(f"the service did not start: {line}{process.stderr.read()}")
        yield found[0], process.pid
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        process.stderr.close()


def resident_mb(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1024


# --- the runs -------------------------------------------------------------------------------


MIXED = "nine searches by id and an upload that is added, in turn"


def requests_of() -> dict[str, list[Request]]:
    large, small, damaged = [], [], []
    for number in range(PHOTOGRAPHS):
        buffer = io.BytesIO()
        photograph(100 + number).save(buffer, "JPEG", quality=90)
        large.append(upload(buffer.getvalue()))
        damaged.append(upload(buffer.getvalue()[: 5000 * (number + 1)], (415, BUSY)))
        buffer = io.BytesIO()
        photograph(100 + number, 224, 224).save(buffer, "JPEG", quality=90)
        small.append(upload(buffer.getvalue()))
    named = [Request("GET", f"/search?id={number:02d}.jpg&k=20") for number in range(PHOTOGRAPHS)]
    shown = [Request("GET", f"/image?id={number:02d}.jpg") for number in range(PHOTOGRAPHS)]
    listed = [Request("GET", f"/items?offset={37 * number}") for number in range(PHOTOGRAPHS)]
    kinds = (large, small, named, shown, listed, damaged)
    mixed = []
    for number in range(ADDED):
        buffer = io.BytesIO()
        photograph(1000 + number, 224, 224).save(buffer, "JPEG", quality=90)
        mixed += [named[(9 * number + turn) % PHOTOGRAPHS] for turn in range(9)]
        mixed.append(upload(buffer.getvalue(), (200, 201, BUSY), path="/items"))
    return {
        "uploads of 224 px": small,
        "uploads of a megapixel": large,
        "searches by id": named,
        "everything in turn": [one for each in zip(*kinds, strict=True) for one in each],
        MIXED: mixed,
    }


def percentile(latencies: Sequence[float], part: int) -> float:
    return round(1000 * statistics.quantiles(latencies, n=100)[part - 1], 2)


Send = Callable[[str, int, int], Load]
"""Runs requests of a kind, by so many clients, of that number."""


@contextmanager
def sending(root: Path, *options: str) -> Iterator[tuple[Send, int]]:
    """Clients of a new service, in a process of their own; and the service's process id."""
    kinds = requests_of()
    with (
        serving(root, *options) as (url, process),
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool,
    ):
        yield lambda *run: pool.submit(send, url, kinds[run[0]], *run[1:]).result(), process


def loads(run: Send, kind: str, title: str, count: int) -> Comparison:
    result = Comparison(title, ours="1 client")
    facts = ("requests_a_second", "p95_ms", "p99_ms", "busy", "errors")
    result.facts = {name: {} for name in facts}
    run(kind, 2, 20)
    for clients in CLIENTS:
        load = run(kind, clients, count)
        name = f"{clients} client{'s' if clients > 1 else ''}"
        result.seconds[name] = load.latencies
        row = (
            round(len(load.latencies) / load.seconds, 1),
            percentile(load.latencies, 95),
            percentile(load.latencies, 99),
            load.statuses.get(BUSY, 0),
            load.errors,
        )
        for fact, value in zip(facts, row, strict=True):
            result.facts[fact][name] = value
    return result


def memory(run: Send, process: int, count: int) -> Comparison:
    result = Comparison(f"memory over {count:,} requests of all kinds", "8 clients")
    resident, errors = [], 0
    for _ in range(10):
        load = run("everything in turn", 8, count // 10)
        result.seconds.setdefault("8 clients", []).extend(load.latencies)
        errors += load.errors
        resident.append(round(resident_mb(process), 1))
    result.facts = {
        "errors": errors,
        "resident_mb_after_each_tenth": json.dumps(resident),
        "growth_of_the_last_nine_tenths_mb": round(resident[-1] - resident[0], 1),
    }
    return result


def measure(options: Namespace, root: Path) -> Report:
    report = Report("A served index", images=options.images, requests=options.requests)
    uploads = [kind for kind in requests_of() if kind.startswith("uploads")]
    with sending(root) as (run, process):
        for kind in requests_of():
            if kind != MIXED:
                title = f"{kind}, {options.images:,} images"
                report.add(loads(run, kind, title, options.requests))
        report.add(memory(run, process, options.memory))
    with sending(root, "--student", f"onnx:{root / 'exported'}") as (run, _):
        for kind in uploads:
            title = f"{kind}, {options.images:,} images, the student exported to ONNX"
            report.add(loads(run, kind, title, options.requests))
    with sending(root, "--writable") as (run, _):
        title = f"{MIXED}, {options.images:,} images"
        report.add(loads(run, MIXED, title, options.requests))
    return report


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=100_000, help="in the index")
    parser.add_argument("--requests", type=int, default=2_000, help="of each run")
    parser.add_argument("--memory", type=int, default=10_000, help="requests of the last run")
    options = parser.parse_args()
    if options.quick:
        options.images, options.requests, options.memory = 1_000, 60, 200
    with tempfile.TemporaryDirectory() as folder:
        build_index(Path(folder), options.images)
        measure(options, Path(folder)).finish(options.out)


if __name__ == "__main__":
    main()
