"""Models of every scheme that differ in one weight, one option or one number."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from exporting import write_student
from helpers import write_groups
from whiten.models.registry import open_teacher

sys.path.insert(0, str(Path(__file__).parent / "teachers"))

Write = Callable[[Path], list[str]]
"""Writes what a scheme's models are made of, and returns URIs of models that all differ."""


def save_state(module: torch.nn.Module, path: Path) -> Path:
    from teacher_helpers import random_state

    torch.save(random_state(module, 0), path)
    return path


def change_one(path: Path, to: Path) -> Path:
    """The same weights, but for one number of the first tensor that has any."""
    state = load_file(path) if path.suffix == ".safetensors" else torch.load(path)
    name = next(name for name in sorted(state) if state[name].is_floating_point())
    state[name] = state[name].clone()
    state[name].view(-1)[0] += 0.5
    if path.suffix == ".safetensors":
        save_file(state, to, metadata={"format": "pt"})
    else:
        torch.save(state, to)
    return to


def write_timm(folder: Path) -> list[str]:
    import timm

    path = save_state(timm.create_model("test_efficientnet", num_classes=0), folder / "a.pth")
    other = change_one(path, folder / "b.pth")
    uri = f"timm:test_efficientnet?weights={path}"
    options = ("&size=64", "&fit=squash", "&pool=gem", "&size=64&pool=avg", "&size=96")
    return [uri, f"timm:test_efficientnet?weights={other}", *(uri + option for option in options)]


def write_torchvision(folder: Path) -> list[str]:
    import torchvision

    path = save_state(torchvision.models.mobilenet_v3_small(), folder / "a.pth")
    other = change_one(path, folder / "b.pth")
    uri = f"torchvision:mobilenet_v3_small?weights={path}"
    return [uri, f"torchvision:mobilenet_v3_small?weights={other}", f"{uri}&size=64"]


def write_openclip(folder: Path) -> list[str]:
    open_clip = pytest.importorskip("open_clip")
    from test_teachers_openclip import TOWERS

    gelu = TOWERS | {"quick_gelu": True}
    heads = TOWERS | {"vision_cfg": TOWERS["vision_cfg"] | {"head_width": 16}}
    for name, config in (("print-a", TOWERS), ("print-gelu", gelu), ("print-heads", heads)):
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    path = save_state(open_clip.create_model("print-a"), folder / "a.pth")
    state = torch.load(path)
    state["visual.conv1.weight"].view(-1)[0] += 0.5
    torch.save(state, folder / "b.pth")
    names = ("print-a", "print-gelu", "print-heads")
    uris = [f"openclip:{name}?weights={path}" for name in names]
    return [*uris, f"{uris[0]}&size=64", f"openclip:print-a?weights={folder / 'b.pth'}"]


def write_hf(folder: Path) -> list[str]:
    transformers = pytest.importorskip("transformers")
    from hf_models import VISION, save_hf

    first = folder / "first"
    config = transformers.ViTConfig(**VISION)
    save_hf(transformers.ViTModel(config), first)
    uris = [f"hf:{first}", f"hf:{first}?size=64", f"hf:{first}?pool=cls", f"hf:{first}?pool=avg"]
    for name, file, change in (
        ("act", "config.json", {"hidden_act": "relu"}),
        ("epsilon", "config.json", {"layer_norm_eps": 0.1}),
        ("heads", "config.json", {"num_attention_heads": 4}),
        ("mean", "preprocessor_config.json", {"image_mean": [0.1, 0.2, 0.31]}),
        ("filter", "preprocessor_config.json", {"resample": 0}),
    ):
        shutil.copytree(first, folder / name)
        facts = json.loads((folder / name / file).read_text())
        (folder / name / file).write_text(json.dumps(facts | change))
        uris.append(f"hf:{folder / name}")
    shutil.copytree(first, folder / "weight")
    change_one(first / "model.safetensors", folder / "weight" / "model.safetensors")
    # Of the two halves of a model in shards, the second is changed.
    state = load_file(first / "model.safetensors")
    names = sorted(state)
    for name, added in (("shards", 0.5), ("other-shards", 0.7)):
        shutil.copytree(first, folder / name)
        (folder / name / "model.safetensors").unlink()
        changed = state | {names[-1]: state[names[-1]] + added}
        halves = {"1.safetensors": names[:5], "2.safetensors": names[5:]}
        for file, part in halves.items():
            tensors = {n: changed[n].contiguous() for n in part}
            save_file(tensors, folder / name / file, metadata={"format": "pt"})
        index = {"metadata": {}, "weight_map": {n: f for f, part in halves.items() for n in part}}
        (folder / name / "model.safetensors.index.json").write_text(json.dumps(index))
        uris.append(f"hf:{folder / name}")
    return [*uris, f"hf:{folder / 'weight'}"]


def write_paper(folder: Path) -> list[str]:
    from published_files import fill_rule, published_tensors, write_published

    tensors = published_tensors("barlowtwins", fill_rule)
    path = write_published("barlowtwins", folder, tensors)
    (folder / "other").mkdir()
    key = next(key for key in tensors if key.endswith("conv1.weight"))
    changed = tensors[key].clone()
    changed.view(-1)[0] += 0.5
    other = write_published("barlowtwins", folder / "other", tensors | {key: changed})
    uri = f"paper:barlowtwins?weights={path}"
    options = ("&size=64", "&p=3", "&p=3.0000001", "&fit=squash")
    return [uri, f"paper:barlowtwins?weights={other}", *(uri + option for option in options)]


def write_onnx(folder: Path) -> list[str]:
    pytest.importorskip("onnx")
    from onnx_graphs import MEAN, PROJECT, TOKENS, WEIGHT, beside, save

    shapes = {"outputs": ["embedding"], "shape": ["n", 3, "h", "w"]}
    plain = save(folder / "a.onnx", [MEAN, PROJECT], **shapes)
    changed = WEIGHT.copy()
    changed[0, 0] += 0.5
    other = save(folder / "b.onnx", [MEAN, PROJECT], constants={"weight": changed}, **shapes)
    tokens = save(folder / "t.onnx", TOKENS, outputs=["tokens"])
    paths = [beside(folder / f"x{n}" / "g.onnx", scale=1 + n) for n in range(2)]
    uri = f"onnx:{plain}"
    options = (
        "size=64",
        "mean=0.485,0.456,0.407",
        "std=0.229,0.224,0.226",
        "white=255",
        "channels=bgr",
        "fit=squash",
        "crop=0.9",
        "interpolation=bilinear",
        "output=colour",
    )
    pools = [f"onnx:{tokens}?pool={pool}" for pool in ("cls", "mean", "gem", "max")]
    return [
        uri,
        f"onnx:{other}",
        *(f"{uri}?{option}" for option in options),
        *pools,
        *(f"onnx:{path}" for path in paths),
    ]


SOURCE = """
import torch
from torch import nn

from {helper} import SCALE


class Net(nn.Module):
    def __init__(self, pool, power):
        super().__init__()
        self.pool, self.power = pool, float(power)
        self.register_buffer("shift", torch.full((3,), {shift}), persistent=False)

    def forward(self, images):
        maps = (images * SCALE) ** self.power + self.shift[:, None, None]
        return maps.mean((2, 3)) if self.pool == "avg" else maps.amax((2, 3))


def make(pool="avg", power="1"):
    return Net(pool, power)


def also(pool="max", power="1"):
    return Net(pool, power)
"""


def write_python(folder: Path) -> list[str]:
    sys.path.insert(0, str(folder))
    for name, scale, shift in (("a", 1, 0.0), ("b", 1, 0.5), ("c", 2, 0.0)):
        package = folder / f"print_{name}"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "scales.py").write_text(f"SCALE = {scale}\n")
        (package / "nets.py").write_text(SOURCE.format(helper=".scales", shift=shift))
    uri = "python:print_a.nets:make"
    options = ("?pool=max", "?power=3", "?pool=max&power=3")
    others = ("python:print_a.nets:also", "python:print_b.nets:make", "python:print_c.nets:make")
    return [uri, *(uri + option for option in options), *others]


def write_whiten(folder: Path) -> list[str]:
    first = write_student(folder / "first")
    from whiten.models.card import model_card
    from whiten.models.student import load_student, save_student

    uris = [f"whiten:{first}"]
    net, config = load_student(first)
    mean = dataclasses.replace(config.preprocess, mean=(0.485, 0.456, 0.4061))
    for name, known in (("mean", dataclasses.replace(config, preprocess=mean)), ("net", config)):
        if name == "net":
            with torch.no_grad():
                net.projection.weight[0, 0] += 0.5
        save_student(net, known, folder / name, model_card(known))
        uris.append(f"whiten:{folder / name}")
    return uris


def write_exported(scheme: str, *precisions: str) -> Write:
    def write(folder: Path) -> list[str]:
        pytest.importorskip({"openvino": "openvino"}.get(scheme, "onnxruntime"))
        from whiten.export import export

        uris = []
        for seed in (0, 1):
            student = write_student(folder / f"student{seed}", seed=seed)
            out = folder / f"exported{seed}"
            export(student, out, formats=[scheme], precisions=list(precisions))
            uris += [f"{scheme}:{out}?precision={precision}" for precision in precisions]
        return uris

    return write


def write_stores(folder: Path) -> list[str]:
    images = write_groups(folder / "images", {"a": 3})
    (folder / "print_store.py").write_text(SOURCE.format(helper="print_scale", shift=0.0))
    (folder / "print_scale.py").write_text("SCALE = 1\n")
    sys.path.insert(0, str(folder))
    from whiten.datasets.finding import find_items
    from whiten.embedding.embed import embed

    uris = []
    for number, (model, options) in enumerate(
        (
            ("make", {}),
            ("make?pool=max", {}),
            ("make", {"dtype": "float16"}),
            ("make", {"precision": "bf16"}),
        )
    ):
        teacher = open_teacher(f"python:print_store:{model}")
        embed(find_items(images), teacher, folder / f"store{number}", **options)
        uris.append(f"store:{folder / f'store{number}'}")
    return uris


WRITERS: dict[str, Write] = {
    "timm": write_timm,
    "torchvision": write_torchvision,
    "openclip": write_openclip,
    "hf": write_hf,
    "paper": write_paper,
    "onnx": write_onnx,
    "python": write_python,
    "whiten": write_whiten,
    "store": write_stores,
    "torchscript": write_exported("torchscript", "fp32", "bf16"),
    "openvino": write_exported("openvino", "fp32", "bf16", "fp16"),
    "fuse": lambda folder: [
        *(f"fuse:raw:{uri},{uri}" for uri in write_python(folder)[:3]),
        "fuse:raw:python:print_a.nets:make,python:print_b.nets:make",
        "fuse:raw:python:print_b.nets:make,python:print_a.nets:make",
    ],
}
