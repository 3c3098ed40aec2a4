"""Report installed extras, available devices, and how to run faster."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
from dataclasses import dataclass

import torch

from whiten._version import __version__
from whiten.models.choice import describe_auto
from whiten.utils import steady
from whiten.utils.devices import best_device, computes_bf16
from whiten.utils.threads import cores

# Extra -> its purpose, and the modules that it installs.
EXTRAS = {
    "openvino": ("export to OpenVINO", ("openvino",)),
    "openclip": ("openclip: models", ("open_clip",)),
    "hf": ("hf: models", ("transformers",)),
    "video": ("videos", ("av",)),
    "formats": ("HEIC, AVIF and JPEG XL", ("pillow_heif", "pillow_jxl")),
    "fast": ("JPEG files in less time", ("simplejpeg",)),
    "serve": ("whiten serve", ("fastapi", "python_multipart", "prometheus_client", "uvicorn")),
    "faiss": ("approximate search and product quantisation", ("faiss",)),
    "milvus": ("milvus: places", ("pymilvus", "milvus_lite")),
    "pgvector": ("pgvector: places", ("psycopg",)),
    "s3": ("s3:// URLs", ("s3fs",)),
    "gcs": ("gs:// URLs", ("gcsfs",)),
    "azure": ("az:// URLs", ("adlfs",)),
    "http": ("http:// and https:// URLs", ("aiohttp",)),
    "ray": ("--cluster ray", ("ray",)),
    "sklearn": ("whiten.sklearn", ("sklearn",)),
}
LIBRARIES = (
    *("torch", "torchvision", "timm", "onnx", "onnxruntime"),
    *("numpy", "pyarrow", "lightning-fabric", "pillow"),
)


@dataclass(frozen=True)
class Diagnosis:
    """Facts by name, and advice."""

    facts: dict[str, str]
    advice: list[str]


def diagnose() -> Diagnosis:
    """Inspect this machine; changes nothing and sends nothing."""
    device = best_device()
    facts = {
        "whiten": __version__,
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        **{name: _version(name) for name in LIBRARIES},
        "device": _describe(device),
        "runtime": describe_auto(),
        "cores": str(cores()),
        "torch threads": str(torch.get_num_threads()),
        **steady.describe(),
        "bf16": "native" if computes_bf16(device.type) else "not native, training runs in float32",
    }
    advice = []
    for extra, (purpose, modules) in EXTRAS.items():
        missing = [m for m in modules if importlib.util.find_spec(m) is None]
        remedy = f"for {purpose}: pip install 'whiten[{extra}]'"
        facts[f"extra {extra}"] = f"missing, {remedy}" if missing else "installed"
        if missing and extra == "fast":  # the others add what can be done, not speed
            advice.append(remedy)
    if device.type == "cpu":
        advice.append(
            "no GPU: keep the teachers cached (the default), and try --backbone-lr 0 first"
        )
        if torch.get_num_threads() > cores():
            advice.append(
                f"torch runs {torch.get_num_threads()} threads on {cores()} cores: "
                f"set OMP_NUM_THREADS={cores()}"
            )
        if hasattr(os, "getloadavg") and os.getloadavg()[0] > cores():  # not on Windows
            advice.append(
                "other programs keep this machine busy: embedding may take several times longer"
            )
        if sys.platform == "linux" and "+cu" in torch.__version__:
            advice.append("torch is a CUDA build but there is no GPU: the CPU build is smaller")
    elif cores() < 4:
        advice.append("few cores beside a GPU: decoding images will be the limit")
    return Diagnosis(facts, advice)


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        count, name = torch.cuda.device_count(), torch.cuda.get_device_name()
        return f"{count} x {name}" if count > 1 else name
    return {"mps": "Apple GPU (mps)", "cpu": "CPU"}[device.type]
