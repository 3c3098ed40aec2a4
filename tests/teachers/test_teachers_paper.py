"""The paper's seven teachers: published files become the networks that the paper distils."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from command_line import Captured, fails, prints
from published_files import (
    FILES,
    batch_norm,
    blank,
    check_close,
    embed_raw,
    fill_rule,
    golden_outputs,
    published_tensors,
    write_published,
)
from teacher_helpers import Explosive, make_pixels, normalise
from whiten.errors import ConfigError, TeacherError
from whiten.models.registry import open_teacher
from whiten.models.sources.paper.catalogue import PUBLISHED
from whiten.models.teacher import Teacher
from whiten.views.rendering import IMAGENET_MEAN, IMAGENET_STD

BGR = ("resnet101_delg", "resnet101_dolg")


# --- the golden outputs -----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_golden(name: str, folder: Path) -> None:
    golden = golden_outputs()
    path = write_published(name, folder, published_tensors(name))
    teacher = open_teacher(f"paper:{name}?weights={path}&p=3&size=64")
    images = torch.from_numpy(golden["input"])
    out = embed_raw(teacher, images)
    check_close(out, golden[name])
    assert teacher.dim == out.shape[1]
    check_channels(teacher, is_bgr=name in BGR)
    check_any_size(teacher, images)
    check_average(teacher, path)


def check_channels(teacher: Teacher, *, is_bgr: bool) -> None:
    """Images are normalised as RGB; networks that want BGR get the channels reversed."""
    pixels = make_pixels(64)
    rgb = normalise(pixels, IMAGENET_MEAN, IMAGENET_STD)
    right, wrong = (rgb.flip(1), rgb) if is_bgr else (rgb, rgb.flip(1))
    embeddings = torch.from_numpy(teacher.embed(pixels))
    check_close(embeddings, F.normalize(embed_raw(teacher, right), dim=1))
    other = F.normalize(embed_raw(teacher, wrong), dim=1)
    assert (embeddings - other).abs().max() > 1e-3 * embeddings.abs().max()


def check_any_size(teacher: Teacher, images: Tensor) -> None:
    for height, width in ((32, 32), (32, 90), (71, 40)):
        single = embed_raw(teacher, images[:1, :, :height, :width])
        assert single.shape == (1, teacher.dim)
        assert torch.isfinite(single).all()
    check_close(embed_raw(teacher, images[:1]), embed_raw(teacher, images)[:1])


def check_average(teacher: Teacher, path: Path) -> None:
    """Power 1 is the plain average, and no store takes it for the embedding of another power."""
    averaging: Any = open_teacher(f"paper:{teacher.name}?weights={path}&p=1&size=64")
    net = averaging.module
    images = torch.from_numpy(golden_outputs()["input"])
    with torch.inference_mode():
        maps = net.trunk(images)
        # The published average keeps the negative values that SOLAR's attention makes.
        assert (maps.min() < -1e-3) == (teacher.name == "resnet101_solar")
        pooled = maps.mean(dim=(2, 3))
        if teacher.name not in BGR:
            pooled = F.normalize(pooled, dim=1)
        head = net.fc_t if teacher.name == "resnet101_dolg" else net.head
        check_close(embed_raw(averaging, images), head(pooled))
    assert averaging.weights_hash == teacher.weights_hash
    assert averaging.fingerprint() != teacher.fingerprint()


@pytest.mark.slow
def test_gem_as_its_own_authors_publish_it(folder: Path) -> None:
    places = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    tensors = {"pool.p": torch.tensor([3.0])}
    for key, value in published_tensors("resnet101_gem").items():
        part, _, rest = key.partition(".")
        tensors[f"whiten.{rest}" if part == "fc" else f"features.{places[part]}.{rest}"] = value
    beside = {"meta": {"outputdim": 2048, "Lw": {"ss": {"m": np.ones((3, 1)), "n": np.int64(2)}}}}
    path = write_published("resnet101_gem", folder, tensors, **beside)
    golden = golden_outputs()
    out = embed_raw(
        open_teacher(f"paper:resnet101_gem?weights={path}"), torch.from_numpy(golden["input"])
    )
    check_close(out, golden["resnet101_gem"])


# --- heads ------------------------------------------------------------------------------


def norm_shapes(key: str, width: int, *, is_affine: bool = True) -> dict[str, tuple[int, ...]]:
    names = ["running_mean", "running_var", *(["weight", "bias"] if is_affine else [])]
    return {f"{key}.num_batches_tracked": (), **{f"{key}.{name}": (width,) for name in names}}


@pytest.mark.slow
def test_mocov3_with_its_head(folder: Path) -> None:
    base, predictor = "module.base_encoder.fc", "module.predictor"
    shapes = {
        f"{base}.0.weight": (4096, 2048),
        **norm_shapes(f"{base}.1", 4096),
        f"{base}.3.weight": (256, 4096),
        **norm_shapes(f"{base}.4", 256, is_affine=False),
        f"{predictor}.0.weight": (4096, 256),
        **norm_shapes(f"{predictor}.1", 4096),
        f"{predictor}.3.weight": (256, 4096),
    }
    head = {key: fill_rule(key, shape) for key, shape in shapes.items()}
    ignored = {"module.momentum_encoder.conv1.weight": torch.zeros(2)}
    tensors = {**published_tensors("mocov3"), **head, **ignored}
    path = write_published("mocov3", folder, tensors, epoch=1000, arch="resnet50")
    golden = golden_outputs()
    images = torch.from_numpy(golden["input"])

    bare = open_teacher(f"paper:mocov3?weights={path}&p=3&head=0")
    pooled = embed_raw(bare, images)
    check_close(pooled, golden["mocov3"])
    x = batch_norm(pooled @ head[f"{base}.0.weight"].T, head, f"{base}.1").relu()
    x = batch_norm(x @ head[f"{base}.3.weight"].T, head, f"{base}.4")
    x = batch_norm(x @ head[f"{predictor}.0.weight"].T, head, f"{predictor}.1").relu()
    whole = open_teacher(f"paper:mocov3?weights={path}&p=3&head=1")
    check_close(embed_raw(whole, images), x @ head[f"{predictor}.3.weight"].T)
    assert (bare.dim, whole.dim) == (2048, 256)
    assert whole.fingerprint() != bare.fingerprint()

    write_published("mocov3", folder, {k: v for k, v in tensors.items() if k not in head})
    with pytest.raises(TeacherError, match=rf"lacks {base}.0.weight, .* and \d+ more"):
        open_teacher(f"paper:mocov3?weights={path}&head=1")


@pytest.mark.slow
def test_barlowtwins_with_its_head(folder: Path) -> None:
    def hankel(seed: int, width: int) -> Tensor:
        """A matrix without equal rows or columns, of the memory of two of its rows."""
        generator = torch.Generator().manual_seed(seed)
        line = torch.randn(8192 + width, generator=generator) / width**0.5
        return line.as_strided((8192, width), (1, 1))

    base = "module.projector"
    head = {f"{base}.{n}.weight": hankel(n, 2048 if n == 0 else 8192) for n in (0, 3, 6)}
    for key in (f"{base}.1", f"{base}.4", "module.bn"):
        shapes = norm_shapes(key, 8192, is_affine=key != "module.bn")
        head |= {name: fill_rule(name, shape) for name, shape in shapes.items()}
    path = write_published("barlowtwins", folder, {**published_tensors("barlowtwins"), **head})
    golden = golden_outputs()
    images = torch.from_numpy(golden["input"])
    x = torch.from_numpy(golden["barlowtwins"])
    x = batch_norm(x @ head[f"{base}.0.weight"].T, head, f"{base}.1").relu()
    x = batch_norm(x @ head[f"{base}.3.weight"].T, head, f"{base}.4").relu()
    x = batch_norm(x @ head[f"{base}.6.weight"].T, head, "module.bn")
    teacher = open_teacher(f"paper:barlowtwins?weights={path}&p=3&head=1")
    assert teacher.dim == 8192
    check_close(embed_raw(teacher, images), x)
    assert open_teacher(f"paper:barlowtwins?weights={path}").dim == 2048


# --- what is refused --------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_missing_extra_and_misshapen_tensors_are_named(name: str, tmp_path: Path) -> None:
    tensors = published_tensors(name, blank)
    first, *_, last = tensors
    extra = "globalmodel.extra.weight"  # what is outside of it may be DELG's local branch
    misshapen = next(key for key in tensors if "conv" in key)
    damaged = {**tensors, extra: blank("", (1,)), misshapen: blank("", (5, 5))}
    del damaged[first], damaged[last]
    if misshapen == first:
        del damaged[extra]
        damaged[extra] = blank("", (1,))
    path = write_published(name, tmp_path, damaged)
    with pytest.raises(TeacherError) as caught:
        open_teacher(f"paper:{name}?weights={path}")
    message = str(caught.value)
    assert f"it lacks {first}, {last}; has unknown {extra}" in message
    if misshapen != first:
        assert f"{misshapen} [5, 5] instead of" in message
    assert "\n" not in message


def test_many_wrong_keys_are_counted(tmp_path: Path) -> None:
    path = write_published("mocov3", tmp_path, {"conv1.weight": torch.zeros(1)})
    with pytest.raises(TeacherError, match=r"lacks module\.base_encoder\.conv1.* and 310 more;"):
        open_teacher(f"paper:mocov3?weights={path}")


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    uri = f"paper:resnet101_delg?weights={path}"
    with pytest.raises(TeacherError, match="does not exist"):
        open_teacher(uri)
    for content, message in (
        ({"state_dict": {"a": torch.zeros(1)}}, "has no 'model_state' with tensors"),
        ([torch.zeros(1)], "has no 'model_state' with tensors"),
        ({"model_state": {"a": torch.zeros(1), "b": "text"}}, "holds no tensor at b:"),
        ({"model_state": {}}, "lacks globalmodel.stem.conv.weight"),
    ):
        torch.save(content, path)
        with pytest.raises(TeacherError, match=message):
            open_teacher(uri)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(TeacherError, match="cannot read weights"):
        open_teacher(uri)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    tensors, mark = published_tensors("mocov3", blank), tmp_path / "ran"
    path = write_published("mocov3", tmp_path, tensors, optimizer=Explosive(mark))
    with pytest.raises(TeacherError, match=r"it asks for \w+\.mkdir\): it must be"):
        open_teacher(f"paper:mocov3?weights={path}")
    assert not mark.exists()


def test_the_pca_in_ap_gem_files_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NAVER's files carry PCAs of an old scikit-learn, which no longer has that module."""
    name = "sklearn.decomposition.pca"
    pca = type("PCA", (), {"__module__": name})
    module = ModuleType(name)
    vars(module)["PCA"] = pca
    with monkeypatch.context() as patch:
        for parent in ("sklearn", "sklearn.decomposition"):  # which need not be installed
            patch.setitem(sys.modules, parent, ModuleType(parent))
        patch.setitem(sys.modules, name, module)
        fitted: Any = pca()
        fitted.mean_, fitted.noise_variance_ = np.ones(3, np.float32), np.float64(0.5)
        tensors = published_tensors("resnet101_ap_gem", blank)
        content = {"pca": {"Landmarks_clean": fitted}, "state_dict": tensors}
        path = tmp_path / "Resnet101-AP-GeM-LM18.pt"
        torch.save(content, path, _use_new_zipfile_serialization=False)  # as in 2019
    written = path.read_bytes()
    assert b"cnumpy._core.multiarray" in written
    path.write_bytes(written.replace(b"cnumpy._core.multiarray", b"cnumpy.core.multiarray"))
    teacher = open_teacher(f"paper:resnet101_ap_gem?weights={path}")
    assert teacher.params == 44_549_160 - 2_049_000 + 2048 * 2049  # ResNet-101 with another fc


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("paper:resnet101_delk", "did you mean 'resnet101_delg'"),
        ("paper:zzz", "no teacher 'zzz', it has resnet101_gem, "),
        ("paper:resnet101_gem?wieghts=x", "did you mean 'weights'"),
        ("paper:resnet101_gem?head=1", "has no option 'head'"),
        ("paper:resnet101_delg?branch=fused", "has no option 'branch'"),
        ("paper:resnet101_dolg?weights=x&branch=local", "must be global or fused"),
        ("paper:resnet101_gem?weights=x&p=0", "must be of type number above 0"),
        ("paper:resnet101_gem?weights=x&p=nan", "must be of type number above 0"),
        ("paper:resnet101_gem?weights=x&fit=stretch", "must be crop or squash"),
        ("paper:resnet101_solar", "get resnet101-solar-best.pth from https://github.com/tonyng"),
    ],
)
def test_wrong_name_or_option(uri: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_teacher(uri)


def test_the_documentation_has_the_facts_of_the_code() -> None:
    page = (Path(__file__).parents[2] / "docs" / "teachers.md").read_text("utf-8")
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    for name, teacher in PUBLISHED.items():
        assert FILES[name]["file"] == teacher.file
        fact = f"{teacher.channels.upper()}, {teacher.size} px | {teacher.dim}"
        for text in (f"| `{teacher.file}` | {teacher.source}", fact, f"| {teacher.licence} |"):
            assert text in rows[name]


# --- the command line -------------------------------------------------------------------


def test_command_line(capsys: Captured, tmp_path: Path) -> None:
    out, _ = prints(capsys, "teachers", "paper:")
    assert out.splitlines() == [f"paper:{name}" for name in FILES]
    for name, facts in FILES.items():
        assert facts["file"] in fails(capsys, "teachers", f"paper:{name}")
    path = write_published("barlowtwins", tmp_path, published_tensors("barlowtwins", blank))
    out, _ = prints(capsys, "teachers", f"paper:barlowtwins?weights={path}", "--json")
    facts = json.loads(out)
    assert facts["dim"] == 2048
    assert facts["input"] == "224x224 px, crop, bilinear, rgb nchw"
    assert facts["licence"] == "CC-BY-NC-4.0"
    assert facts["params"] == 25_557_032 - 2_049_000  # ResNet-50 without its classifier
    assert 4.0e9 < facts["macs"] < 4.2e9
