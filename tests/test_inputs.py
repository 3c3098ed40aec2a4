"""Every usual form of an image is embedded alike, and one that is damaged loses no other."""

from __future__ import annotations

import io
import multiprocessing
import pickle
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

import whiten
from exporting import DIM, write_student
from helpers import TEACHER, draw, write_image
from pictures import encode
from whiten.datasets.finding import find_items
from whiten.embedding.embed import embed
from whiten.embedding.encoder import Encoder
from whiten.embedding.opening import load
from whiten.errors import ConfigError, ImageError, NoImagesError
from whiten.models.inputs import Embedded, SkippedInput
from whiten.models.registry import open_teacher

pytestmark = pytest.mark.usefixtures("colour_teachers")


@pytest.fixture
def encoder() -> Encoder:
    return load(TEACHER)


def png(seed: int) -> bytes:
    return encode(draw(seed))


files = ExitStack()


@pytest.fixture(autouse=True)
def closes_files() -> Iterator[None]:
    yield
    files.close()


def opened(path: Path) -> Any:
    file = files.enter_context(path.open("rb"))
    file.seek(3)  # as after another reader
    return file


PLANES = np.asarray(draw(1)).transpose(2, 0, 1).copy()
FORMS: dict[str, Callable[[Path], Any]] = {
    "text": str,
    "path": lambda path: path,
    "bytes": lambda path: path.read_bytes(),
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "memoryview": lambda path: memoryview(path.read_bytes()),
    "BytesIO": lambda path: io.BytesIO(path.read_bytes()),
    "an open file": opened,
    "PIL": Image.open,
    "array": lambda path: np.asarray(Image.open(path)),
    "tensor of planes": lambda path: torch.from_numpy(PLANES),
    "tensor of pixels": lambda path: torch.from_numpy(np.asarray(draw(1)).copy()),
    "float tensor": lambda path: torch.from_numpy(PLANES).float() / 255,
    "a kind of tensor": lambda path: torch.nn.Parameter(torch.from_numpy(PLANES).float() / 255),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_an_image(form: str, encoder: Encoder, tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png", 1)
    expected = encoder.embed(path)
    for images in (FORMS[form](path), [FORMS[form](path)], iter([FORMS[form](path)])):
        np.testing.assert_allclose(encoder.embed(images), expected, atol=1e-6)
    fused = load(f"fuse:raw:{TEACHER},{TEACHER}?seed=1")  # looks at every image twice
    np.testing.assert_allclose(fused.embed(FORMS[form](path)), fused.embed(path), atol=1e-6)


def test_a_buffer_that_was_just_written(encoder: Encoder) -> None:
    buffer = io.BytesIO()
    draw(1).save(buffer, "PNG")
    np.testing.assert_allclose(encoder.embed(buffer), encoder.embed(draw(1)), atol=1e-6)


def test_several_images_in_one_container(encoder: Encoder, tmp_path: Path) -> None:
    paths = [write_image(tmp_path / f"{n}.png", n) for n in range(3)]
    pixels = np.stack([np.asarray(draw(n)) for n in range(3)])
    planes = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    expected = encoder.embed(paths)
    given: list[Any] = [tuple(paths), (path for path in paths), pixels, planes]
    given.append(np.array([str(path) for path in paths]))
    pandas = pytest.importorskip("pandas")
    given.append(pandas.Series([str(path) for path in paths], index=[7, 8, 9]))
    given.append(pandas.DataFrame({"path": [str(path) for path in paths], "price": 1}))
    names = pa.chunked_array([[str(path) for path in paths]])
    given += [names, names.combine_chunks(), pa.table({"path": names, "price": [1, 2, 3]})]
    for images in given:
        np.testing.assert_allclose(encoder.embed(images), expected, atol=1e-6)
    one = np.array(str(paths[0]))  # of no axes
    np.testing.assert_allclose(encoder.embed(one), expected[:1], atol=1e-6)
    for table in (pandas.DataFrame({"file": ["a"]}), pa.table({"file": ["a"]})):
        with pytest.raises(ConfigError, match="needs a column 'path'"):
            encoder.embed(table)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("https://example.org/a.jpg", "is a URL: download it"),
        ("s3://bucket/a.jpg", "is a URL: download it"),
        (3, "int is no image: give a path"),
        (None, "NoneType is no image"),
        (io.StringIO("text"), "open as text"),
        (io.BytesIO(), "an open file is empty"),
        (torch.randn(3, 8, 8), "not normalised"),
        (np.ma.masked_greater(np.asarray(draw(1)), 99), "some pixels are masked: fill them"),
        (torch.zeros(4, 8, 8, dtype=torch.uint8), r"must be \(h, w, 3\) uint8 RGB"),
    ],
)
def test_what_is_no_image_is_named(image: Any, message: str, encoder: Encoder) -> None:
    for images in (image, [image], [draw(0), image]):
        if images is None:
            continue
        with pytest.raises(ImageError, match=message) as caught:
            encoder.embed(images)
        assert "\n" not in str(caught.value)


def test_one_bad_image_loses_no_other(encoder: Encoder, tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", 1)
    (tmp_path / "cut.png").write_bytes(png(2)[:60])
    images = [tmp_path / "a.png", b"no image", draw(3), tmp_path / "cut.png", None, png(4)]
    expected = encoder.embed([draw(1), draw(3), draw(4)])
    for model in (encoder, load(f"fuse:raw:{TEACHER},{TEACHER}?seed=1")):
        for size in (1, 2, 100):
            found = model.embed(images, errors="skip", batch_size=size)
            assert isinstance(found, Embedded)
            vectors, skipped = found
            np.testing.assert_array_equal(found.rows, [0, 2, 5])
            assert [skip.position for skip in skipped] == [1, 3, 4]
            assert np.isfinite(vectors).all()
    np.testing.assert_allclose(encoder.embed(images, errors="skip").vectors, expected, atol=1e-6)
    assert "not an image" in skipped[0].reason and "image 1 of 6" in skipped[0].reason
    assert "cut.png: damaged" in skipped[1].reason
    with pytest.raises(ImageError, match="image 1 of 6, counted from 0: not an image"):
        encoder.embed(images)
    with pytest.raises(ConfigError, match="errors must be 'raise' or 'skip', not 'ignore'"):
        encoder.embed(images, errors="ignore")  # type: ignore[call-overload]


def test_all_bad_and_none_at_all(encoder: Encoder) -> None:
    vectors, skipped = encoder.embed([b"x"], errors="skip")
    assert vectors.shape == (0, 12)
    assert skipped == [SkippedInput(0, "not an image, or of an unknown format")]
    assert encoder.embed([], errors="skip").vectors.shape == (0, 12)


def test_stored_embeddings_skip_what_they_lack(tmp_path: Path) -> None:
    path = write_image(tmp_path / "images" / "a.png", 1)
    embed(find_items(tmp_path / "images"), open_teacher(TEACHER), tmp_path / "store")
    stored = load(f"store:{tmp_path / 'store'}")
    found = stored.embed([png(9), path, io.BytesIO(path.read_bytes())], errors="skip")
    assert [skip.position for skip in found.skipped] == [0]
    np.testing.assert_allclose(found.vectors, load(TEACHER).embed([path, path]), atol=1e-6)


# --- an index of what Python has --------------------------------------------------------


def test_an_index_of_paths(encoder: Encoder, tmp_path: Path) -> None:
    paths = [write_image(tmp_path / f"{n}.png", n) for n in range(4)]
    names = sorted(map(str, paths))
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"path": names, "price": [5, 6, 7, 8], "group": ["a", "a", None, "b"]})
    for number, images in enumerate((paths, names, iter(paths), frame)):
        index = whiten.Index.build(encoder, images, tmp_path / f"index{number}")
        assert sorted(index.ids()) == names
        assert [hit.id for hit in index.search(paths[2], 1)[0]] == [names[2]]
    found = index.search(paths[2], 4, where='price < 7 and group == "a"')[0]
    assert sorted(hit.id for hit in found) == names[:2]
    more = write_image(tmp_path / "more.png", 9)
    assert index.add([more]).added == 1
    assert len(index) == 5
    for images, error, message in (
        ([], NoImagesError, "no images are given"),
        ([paths[0], str(paths[0])], ConfigError, "is given twice"),
        ([b"content"], ConfigError, "give paths, not bytes"),
        (3, ConfigError, "not int"),
        (pandas.DataFrame({"file": ["a"]}), ConfigError, "no column 'path'"),
    ):
        with pytest.raises(error, match=message):
            whiten.Index.build(encoder, images, tmp_path / "none")


# --- other processes and precisions -----------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxruntime")
    from whiten.export import export

    root = tmp_path_factory.mktemp("exported")
    student = write_student(root / "student")
    export(student, root / "onnx", formats=["onnx"], precisions=["fp32"])
    return root


def test_an_exported_student_is_pickled(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(exported)
    own = whiten.Exported("onnx")
    copy = pickle.dumps(own)
    teacher = pickle.dumps(load("onnx:onnx").parts[0].teacher)
    monkeypatch.chdir(exported.parent)
    again = pickle.loads(copy)
    np.testing.assert_array_equal(again.embed(draw(1)), own.embed(draw(1)))
    assert again.fingerprint() == own.fingerprint()
    monkeypatch.chdir(exported)
    assert pickle.loads(teacher).fingerprint() == load("onnx:onnx").parts[0].teacher.fingerprint()
    vectors, skipped = own.embed([draw(1), b"x"], errors="skip")
    np.testing.assert_array_equal(vectors, own.embed(draw(1)))
    assert [skip.position for skip in skipped] == [1]


def test_it_goes_to_a_process_that_is_spawned(exported: Path) -> None:
    own = whiten.Exported(exported / "onnx")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(own.embed, (png(1),))
    assert found.shape == (1, DIM)
    np.testing.assert_allclose(found, own.embed(png(1)), atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "atol"),
    [(torch.float16, 5e-3), (torch.bfloat16, 5e-2), (torch.float64, 1e-5), (torch.float32, 1e-6)],
)
def test_a_module_in_any_precision(dtype: torch.dtype, atol: float, tmp_path: Path) -> None:
    folder = write_student(tmp_path / "student")
    module = whiten.load_module(folder)
    images = torch.stack([module.transform(draw(n)) for n in range(3)])
    with torch.no_grad():
        expected = module(images)
        other = whiten.load_module(folder).to(dtype)
        pixels = (images * 255).round().byte()
        for given in (images, images.to(dtype), pixels):
            found = other(given)
            assert found.dtype == dtype
            torch.testing.assert_close(found.float(), expected, atol=atol, rtol=0)
    if dtype == torch.float16:
        assert whiten.load_module(folder).half()(images).dtype == dtype
