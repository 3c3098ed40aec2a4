"""One interface to a model, several fused, and what they embed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import whiten
from command_line import Captured, fails, prints
from helpers import TEACHER, draw, write_image
from whiten.datasets.finding import find_items
from whiten.embedding.embed import embed
from whiten.embedding.encoder import Encoder, Part
from whiten.embedding.opening import fit_on, load
from whiten.embedding.rows import embed_rows
from whiten.errors import ConfigError, ImageError, TeacherError, WhiteningError
from whiten.evaluation.evaluate import evaluate
from whiten.models.registry import open_teacher
from whiten.models.uri import lasting, split_uris
from whiten.utils.arrays import normalize_rows
from whiten.whitening.whitener import Whitener

pytestmark = pytest.mark.usefixtures("colour_teachers")

OTHER = f"{TEACHER}?dim=5&seed=1"


@pytest.fixture(scope="module")
def groups() -> dict[str, int]:
    return dict.fromkeys("abc", 4)


def expected_embedding(image: Image.Image) -> np.ndarray:
    """What the teacher of `helpers` makes of a 32 px image, without the library."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.empty(12, 12).normal_(generator=generator).numpy()
    bias = torch.empty(12).normal_(generator=generator).numpy()
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    pixels = (np.asarray(image) / 255 - mean) / std
    quarters = pixels.reshape(2, 16, 2, 16, 3).mean(axis=(1, 3)).transpose(2, 0, 1).ravel()
    embedding = weight @ quarters + bias
    return embedding / np.linalg.norm(embedding)


def test_load_is_public() -> None:
    assert whiten.load is load


def test_a_teacher_embeds() -> None:
    encoder = load(TEACHER)
    assert encoder.dim == 12
    vectors = encoder.embed([draw(1), draw(2)])
    assert vectors.dtype == np.float32
    for vector, seed in zip(vectors, (1, 2), strict=True):
        np.testing.assert_allclose(vector, expected_embedding(draw(seed)), atol=1e-5)


def test_paths_pixels_and_pil_agree(tmp_path: Path) -> None:
    encoder = load(TEACHER)
    image = draw(5)
    path = write_image(tmp_path / "5.png", 5)
    vectors = encoder.embed([path, str(path), path.read_bytes(), image, np.asarray(image)])
    assert vectors.shape == (5, 12)
    np.testing.assert_array_equal(vectors, np.broadcast_to(vectors[0], vectors.shape))
    for single in (path, str(path), path.read_bytes(), image, np.asarray(image)):
        np.testing.assert_allclose(encoder.embed(single), vectors[:1], atol=1e-6)
    stack = np.stack([np.asarray(image)] * 3)
    np.testing.assert_allclose(encoder.embed(stack), vectors[:3], atol=1e-6)


def test_many_images_are_embedded_in_batches() -> None:
    encoder = load(TEACHER)
    images = [draw(seed) for seed in range(37)]
    alone = np.concatenate([encoder.embed(image) for image in images])
    np.testing.assert_allclose(encoder.embed(images), alone, atol=1e-6)


def test_no_images() -> None:
    assert load(TEACHER).embed([]).shape == (0, 12)


@pytest.mark.parametrize("content", [None, b"", b"no image"])
def test_an_unreadable_image_is_named(tmp_path: Path, content: bytes | None) -> None:
    good, bad = write_image(tmp_path / "good.png", 1), tmp_path / "bad.png"
    if content is not None:
        bad.write_bytes(content)
    with pytest.raises(ImageError, match=r"cannot read .*bad\.png: "):
        load(TEACHER).embed([good, bad])


@pytest.mark.parametrize(
    "array",
    [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32)],
)
def test_arrays_must_be_rgb(array: np.ndarray) -> None:
    with pytest.raises(ImageError, match=r"must be \(h, w, 3\) uint8 RGB, not \(8, 8"):
        load(TEACHER).embed(array)


@pytest.mark.parametrize("image", [Image.new("RGB", (0, 5)), np.zeros((0, 5, 3), np.uint8)])
def test_images_without_pixels_are_refused(image: Image.Image | np.ndarray) -> None:
    with pytest.raises(ImageError, match="the image has no pixels"):
        load(TEACHER).embed(image)


# --- collections ------------------------------------------------------------------------


def test_collections_skip_what_cannot_be_read(images: Path) -> None:
    (images / "a" / "broken.png").write_bytes(b"no image")
    encoder = load(TEACHER)
    kept, vectors, skipped = embed_rows(encoder, find_items(images))
    assert len(kept) == 12
    assert [skip.id for skip in skipped] == ["a/broken.png"]
    np.testing.assert_allclose(vectors, encoder.embed([item.path for item in kept]), atol=1e-6)


def test_a_cache_is_used(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, items = load(TEACHER), find_items(images)
    _, first, _ = embed_rows(encoder, items, cache=tmp_path / "cache")
    monkeypatch.setattr(encoder.parts[0].teacher, "forward", lambda _: pytest.fail("embeds again"))
    _, second, _ = embed_rows(encoder, items[::-1], cache=tmp_path / "cache")
    np.testing.assert_array_equal(second, first[::-1])


def test_stored_embeddings_know_files_alone(images: Path, tmp_path: Path) -> None:
    embed(find_items(images), open_teacher(TEACHER), tmp_path / "store")
    stored = load(f"store:{tmp_path / 'store'}")
    path = images / "a" / "0.png"
    np.testing.assert_allclose(stored.embed(path), load(TEACHER).embed(path), atol=1e-6)
    np.testing.assert_array_equal(stored.embed(path.read_bytes()), stored.embed(path))
    with pytest.raises(TeacherError, match="knows image files, not pixels"):
        stored.embed(draw(0))
    with pytest.raises(ImageError, match=r"other\.png is not in store:"):
        stored.embed(write_image(tmp_path / "other.png", 99))
    with pytest.raises(ImageError, match=r"this image is not in store:"):
        stored.embed((tmp_path / "other.png").read_bytes())


# --- fusion -----------------------------------------------------------------------------


def test_raw_fusion_weighs_teachers_equally() -> None:
    fused = load(f"fuse:raw:{TEACHER},{OTHER}")
    assert (fused.dim, len(fused.parts)) == (17, 2)
    vector = fused.embed(draw(3))[0]
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
    parts = [load(uri).embed(draw(3))[0] for uri in (TEACHER, OTHER)]
    np.testing.assert_allclose(vector, np.concatenate(parts) / np.sqrt(2), atol=1e-6)


def test_whitened_fusion_fits_its_whitening(images: Path) -> None:
    uri = f"fuse:whitened:{TEACHER},{OTHER}"
    fused = load(uri, whiten_on=images, whiten_dim=3, shrinkage=0.2)
    assert (fused.dim, fused.name) == (6, "colour_teachers:make + colour_teachers:make, whitened")
    files = [item.path for item in find_items(images)]
    expected = []
    for teacher in (TEACHER, OTHER):
        raw = load(teacher).embed(files)
        whitener = Whitener(3, shrinkage=0.2).fit(raw)
        expected.append(normalize_rows(whitener.transform(raw)))
    expected_vectors = normalize_rows(np.concatenate(expected, axis=1))
    np.testing.assert_allclose(fused.embed(files), expected_vectors, atol=1e-4)
    _, vectors, _ = embed_rows(fused, find_items(images))
    np.testing.assert_allclose(vectors, expected_vectors, atol=1e-4)


def test_a_whitener_from_a_file(capsys: Captured, images: Path, tmp_path: Path) -> None:
    plain, file = load(TEACHER), tmp_path / "w.safetensors"
    fitted = fit_on(plain.parts[0].teacher, images, dim=3)
    fitted.save(file)
    model = load(TEACHER, whitener=file)
    assert (model.dim, model.name) == (3, f"{plain.name}, whitened")
    expected = normalize_rows(fitted.transform(plain.embed([draw(1), draw(2)])))
    np.testing.assert_allclose(model.embed([draw(1), draw(2)]), expected, atol=1e-6)
    out = json.loads(
        prints(capsys, "evaluate", images, "--model", TEACHER, "--whitener", file, "--json")[0]
    )
    by_hand = Encoder("by hand", [Part(plain.parts[0].teacher, fitted)])
    assert out["map"]["value"] == evaluate(by_hand, images).figures["map"].value
    fused = f"fuse:raw:{TEACHER},{OTHER}"
    assert "for a single model" in fails(
        capsys, "evaluate", images, "--model", fused, "--whitener", file
    )


def test_a_whitener_of_another_model_is_refused(images: Path, tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    fit_on(open_teacher(TEACHER), images, dim=4).save(file)
    with pytest.raises(WhiteningError, match=r"whitens 12 dimensions and .* has 5"):
        load(OTHER, whitener=file)
    with pytest.raises(WhiteningError, match=r"was fitted on python:.*, and python:.*seed=1 has"):
        load(f"{TEACHER}?seed=1", whitener=file)
    embed(find_items(images), open_teacher(TEACHER), tmp_path / "store")
    assert load(f"store:{tmp_path / 'store'}", whitener=file).parts[0].whitener is not None
    rows = np.random.default_rng(0).standard_normal((99, 12))
    Whitener(4).fit(rows).save(file)  # does not say on what
    assert load(f"{TEACHER}?seed=1", whitener=file).dim == 4


def test_whitening_keeps_a_cache(images: Path, tmp_path: Path) -> None:
    uri, cache = f"fuse:whitened:{TEACHER}", tmp_path / "cache"
    first = load(uri, whiten_on=images, whiten_dim=3, cache=cache)
    assert any(cache.rglob("*.parquet"))
    again = load(uri, whiten_on=images, whiten_dim=3, cache=cache)
    assert again.fingerprint() == first.fingerprint()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        (f"fuse:whitened:{TEACHER}", "add --whiten-on IMAGES"),
        (f"fuse:{TEACHER}", "write fuse:raw:URI,URI or"),
        ("fuse:raw:", "write fuse:raw:URI,URI or"),
        ("fuse:compatible:", "or fuse:compatible:RUN"),
        ("fuse:compatible:nowhere", "folder of a run, and nowhere is none"),
        ("fuse:raw:tmi:x", "did you mean 'timm'"),
        ("python:", "names no model"),
    ],
)
def test_wrong_models(uri: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(uri)


def test_whitening_images_without_a_whitening(images: Path) -> None:
    with pytest.raises(ConfigError, match=f"is written fuse:whitened:{TEACHER}"):
        load(TEACHER, whiten_on=images)
    for uri in (f"fuse:raw:{TEACHER}", "fuse:compatible:runs/a"):
        with pytest.raises(ConfigError, match=f"for fuse:whitened:URI,URI, not for {uri}"):
            load(uri, whiten_on=images)


def test_impossible_whitenings_are_refused_before_images_are_looked_for() -> None:
    with pytest.raises(ConfigError, match="shrinkage must be 0"):
        load(f"fuse:whitened:{TEACHER}", whiten_on="nowhere", shrinkage=-1)


def test_split_uris() -> None:
    assert split_uris("timm:a") == ["timm:a"]
    assert split_uris("timm:a,torchvision:b?x=1") == ["timm:a", "torchvision:b?x=1"]
    two = ["onnx:m.onnx?mean=1,2,3&std=4,5,6", "timm:a"]
    assert split_uris(",".join(two)) == two
    with pytest.raises(ConfigError, match="unknown model"):
        split_uris("timm:a,nothing:b")


def test_lasting_uris(tmp_path: Path) -> None:
    here = tmp_path / "here"
    (here / "student").mkdir(parents=True)
    (here / "student" / "config.json").write_text("{}")
    (here / "m.onnx").touch()
    (here / "a w+x.pth").touch()
    (here / "resnet50").mkdir()
    named = {
        "student": f"whiten:{here}/student",
        "whiten:student": f"whiten:{here}/student",
        "onnx:./m.onnx?size=32": f"onnx:{here}/m.onnx?size=32",
        "store:student/": f"store:{here}/student",
        "timm:resnet50?size=32&weights=a%20w%2Bx.pth": (
            f"timm:resnet50?size=32&weights={here}/a%20w%2Bx.pth"
        ),
        "fuse:whitened:student": f"fuse:whitened:{here}/student",
        "fuse:raw:onnx:m.onnx?mean=1,2,3,timm:resnet50": (
            f"fuse:raw:onnx:{here}/m.onnx?mean=1,2,3,timm:resnet50"
        ),
    }
    others = ["onnx:none.onnx", "timm:resnet50", "python:m:f?weights=m.onnx", "m.onnx", "hf:a/b"]
    for uri, wanted in {**named, **{uri: uri for uri in others}}.items():
        assert lasting(uri, str(here)) == wanted
        assert lasting(wanted, str(tmp_path)) == wanted


# --- identity ---------------------------------------------------------------------------


def test_fingerprints(images: Path) -> None:
    uris = (TEACHER, f"{TEACHER}?seed=1", f"{TEACHER}?dim=5", f"fuse:raw:{TEACHER},{TEACHER}")
    assert len({load(uri).fingerprint() for uri in uris}) == len(uris)
    assert load(TEACHER).fingerprint() == load(TEACHER).fingerprint()


def test_fingerprint_changes_with_preprocessing_and_whitening() -> None:
    teacher = open_teacher(TEACHER)
    whitener = Whitener(3, shrinkage=0.1).fit(np.random.default_rng(0).normal(size=(50, 12)))
    assert whitener.mean_ is not None
    prints = [Encoder("x", [Part(teacher)]).fingerprint()]
    prints.append(Encoder("x", [Part(teacher, whitener)]).fingerprint())
    whitener._mean = whitener.mean_ + 1
    prints.append(Encoder("x", [Part(teacher, whitener)]).fingerprint())
    larger = dataclasses.replace(teacher, preprocess=teacher.preprocess.resized(64))
    prints.append(Encoder("x", [Part(larger)]).fingerprint())
    assert len(set(prints)) == 4


def test_batches_and_the_device_are_the_callers_choice(images: Path) -> None:
    paths = sorted(images.rglob("*.png"))
    expected = load(TEACHER).embed(paths)
    model = load(TEACHER, device="cpu", batch_size=2)
    assert model.batch_size == 2
    for found in (model.embed(paths), model.embed(paths, batch_size=3, show_progress=True)):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        load(TEACHER, batch_size=0)
    for size in (0, -1):  # -1 gave embeddings of NaN
        with pytest.raises(ConfigError, match="batch_size must be at least 1"):
            model.embed(paths, batch_size=size)


def test_several_models_are_refused_where_one_is_needed(capsys: Captured, images: Path) -> None:
    line = fails(capsys, "embed", images, "--model", f"fuse:raw:{TEACHER},{OTHER}", "--out", "s")
    assert "is several models and a single one is needed here" in line
