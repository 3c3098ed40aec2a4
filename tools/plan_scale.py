"""The plan of docs/scale.md: hours, bytes and machines for up to a billion images.

    python tools/pages.py

Constants are those of `benchmarks/results`, measured by the commands named there; what cannot be
measured on a small machine is in `ASSUMED`, with its reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

SIZES = (1_000_000, 10_000_000, 100_000_000, 1_000_000_000)
DAY = 24.0  # hours; a stage gets as many nodes as it takes to end within a day

Results = Mapping[str, Any]


@dataclass(frozen=True)
class Fact:
    """A constant of the plan, with its unit and where it comes from."""

    value: float
    unit: str
    source: str


ASSUMED = {
    "teachers": Fact(2, "models", "two ViT-B/16"),
    "teacher_gmacs": Fact(
        17.6, "GMAC per image", "ViT-B/16 at 224 px, torchvision's table of weights"
    ),
    "teacher_dim": Fact(768, "dimensions", "ViT-B/16"),
    "student_gmacs": Fact(0.38, "GMAC per image", "EfficientNet-Lite0, 224 px, counted by whiten"),
    "dim": Fact(256, "dimensions", "of the student and the index"),
    "gpus": Fact(8, "GPUs per node", "a usual node"),
    "cores": Fact(96, "cores per node", "a usual node"),
    "gpu_tflops": Fact(312, "TFLOPS", "A100 in bfloat16, its data sheet"),
    "utilisation": Fact(0.4, "of the peak", "not measured: as large models commonly reach"),
    "trained": Fact(2_000_000, "images at most", "GLDv2 clean has 1.6 million"),
    "epochs": Fact(20, "epochs", "the default of whiten distill"),
    "node_memory": Fact(512e9, "bytes per node", "a usual node; half of it is for vectors"),
}

# rom1504/clip-retrieval, README: "100M text+image embeddings can be processed in 20h using a 3080"
PUBLISHED_HOURS, PUBLISHED_PAIRS = 20.0, 100_000_000
_CLIP_GMACS = 4.4 + 2.9  # ViT-B/32 and its text encoder
_RTX_3080_TFLOPS = 59.5  # half precision with float32 sums, dense


def measured(results: Results) -> dict[str, Fact]:
    """Return the constants that benchmarks measured."""
    folder = results["embed_folder"]["comparisons"][0]
    cores = results["embed_folder"]["machine"]["cores"]
    decode = folder["rivals"]["floor: decoding alone"]["median_s"] / folder["images"] * cores
    index = {c["setting"]: c for c in results["index"]["comparisons"]}
    build = index["1,000,000 × 256: build"]
    search = index["1 query × 1,000,000 × 256, top 100"]["rivals"]
    return {
        "decode": Fact(decode, "core-s per image", "embed_folder: decoding a 1024×768 JPEG"),
        "build": Fact(build["rivals"]["build"]["median_s"] / 1e6, "s per vector", "index: build"),
        "row": Fact(build["disk_mb"], "bytes per vector", "index: float32, 256 dimensions, ids"),
        "exact": Fact(
            search["exact"]["median_s"], "s per query", "index: exact, 1 million, 2 cores"
        ),
    }


def gpu_rate(gmacs: float, tflops: float) -> float:
    """Return images per second of one GPU; a multiply-accumulate is two operations."""
    return ASSUMED["utilisation"].value * tflops * 1e12 / (2e9 * gmacs)


@dataclass(frozen=True)
class Stage:
    """One stage at one size."""

    name: str
    hours: float
    nodes: int
    bytes: float
    bottleneck: str
    engine: str


def plan(images: int, constants: Mapping[str, Fact]) -> Iterator[Stage]:
    """Yield the stages for a collection."""
    a = {name: fact.value for name, fact in (ASSUMED | dict(constants)).items()}
    decoded = a["cores"] / a["decode"]  # images per second and node

    def embedding(name: str, models: float, gmacs: float, dim: float) -> Stage:
        computed = a["gpus"] * gpu_rate(gmacs, a["gpu_tflops"])
        hours = models * images / min(decoded, computed) / 3600
        nodes = max(1, ceil(hours / DAY))
        what = "decoding (cores)" if decoded < computed else "the network (GPUs)"
        engine = "one machine" if nodes == 1 else "--cluster ray"
        size = models * images * 2 * dim
        return Stage(name, hours / nodes, nodes, size, what, engine)

    yield embedding("embed teachers", a["teachers"], a["teacher_gmacs"], a["teacher_dim"])
    shown = 2 * min(images, a["trained"]) * a["epochs"]
    trained = a["gpus"] * gpu_rate(3 * a["student_gmacs"], a["gpu_tflops"])
    what = "decoding (cores)" if decoded < trained else "the network (GPUs)"
    targets = a["teachers"] * min(images, a["trained"]) * 4 * a["teacher_dim"]
    hours = shown / min(decoded, trained) / 3600
    yield Stage("train", hours, 1, targets, what, "one machine, or torchrun")
    yield embedding("embed students", 1, a["student_gmacs"], a["dim"])
    size = images * a["row"]
    parts = max(1, ceil(size / (a["node_memory"] / 2)))
    hours = images * a["build"] / parts / 3600
    engine = "a folder" if images <= 10_000_000 else "folders, or Milvus"
    if parts > 1:
        engine = "Milvus on several nodes"
    yield Stage("index", hours, parts, size, "writing vectors (disk)", engine)
    exact = 1e3 * a["exact"] * images / parts / 1e6
    yield Stage("serve", 0.0, parts, size, f"memory; {exact:,.0f} ms per exact query", engine)


def check() -> tuple[float, float]:
    """Return the hours that this model gives for a published run, and the published hours."""
    seconds = PUBLISHED_PAIRS / gpu_rate(_CLIP_GMACS, _RTX_3080_TFLOPS)
    return seconds / 3600, PUBLISHED_HOURS


def texts(results: Results) -> dict[str, str]:
    """Return the texts of docs/scale.md by name."""
    constants = measured(results)
    ours, theirs = check()
    return {
        "plan": "\n".join(_plan_table(constants)),
        "constants": "\n".join(_facts(constants)),
        "assumptions": "\n".join(_facts(ASSUMED)),
        "check": f"The model gives {ours:.0f} hours for it, {ours / theirs:.2f} of what was "
        "published.",
        "growth": "\n".join(_growth(results["memory"])),
    }


def _plan_table(constants: Mapping[str, Fact]) -> Iterator[str]:
    yield "| images | stage | hours | nodes | bytes | bottleneck | engine |"
    yield "|---:|---|---:|---:|---:|---|---|"
    for images in SIZES:
        for stage in plan(images, constants):
            hours = f"{stage.hours:,.2g}" if stage.hours else ""
            cells = [f"{images:,}", stage.name, hours, str(stage.nodes), _size(stage.bytes)]
            yield f"| {' | '.join([*cells, stage.bottleneck, stage.engine])} |"


def _facts(facts: Mapping[str, Fact]) -> Iterator[str]:
    yield "| constant | value | unit | source |"
    yield "|---|---:|---|---|"
    for name, fact in facts.items():
        value = f"{fact.value:,.0f}" if fact.value >= 1000 else f"{fact.value:.3g}"
        yield f"| {name.replace('_', ' ')} | {value} | {fact.unit} | {fact.source} |"


def _growth(memory: Results) -> Iterator[str]:
    yield (
        "| stage | bytes per image, measured | at 100 million images | at 1 billion "
        "| µs per image | time for 10 times the images |"
    )
    yield "|---" + "|---:" * 5 + "|"
    for stage, growth in memory["growth"].items():
        cost, micros = growth["bytes_an_image"], 1e6 * growth["seconds_an_image"]
        cells = [f"{cost:.0f}", _size(1e8 * cost), _size(1e9 * cost), f"{micros:.1f}"]
        yield f"| {' | '.join([stage, *cells])} | {growth['times_for_tenfold']:.1f}× |"


def _size(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9)):
        if count >= size:
            return f"{count / size:,.3g} {unit}"
    return f"{count / 1e6:,.0f} MB"
