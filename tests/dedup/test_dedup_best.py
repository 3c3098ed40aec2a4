"""Which file is kept: true resolution, compression, the camera's facts, and the reference."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from command_line import Captured, fails, prints
from copies import TEACHER, pairs, run, shell
from whiten.dedup import deduplicate, open_collection
from whiten.dedup.quality import beside_others, quality_of
from whiten.dedup.writing import write_results
from whiten.embedding.opening import load
from whiten.errors import ConfigError

pytestmark = pytest.mark.usefixtures("small_pictures")


def photograph(seed: int = 0, width: int = 320, height: int = 240) -> Image.Image:
    """As much detail in each octave, as photographs have."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    channels = []
    for _ in range(3):
        white = np.fft.rfft2(rng.standard_normal((height, width)))
        channels.append(np.fft.irfft2(white / frequency**1.2, s=(height, width)))
    pixels = np.stack(channels, axis=-1)
    pixels = 128 + 45 * (pixels - pixels.mean()) / pixels.std()
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def with_exif() -> Image.Exif:
    facts = Image.Exif()
    facts[0x010F] = "a camera"
    return facts


def enlarged(image: Image.Image, scale: float, way: Image.Resampling) -> Image.Image:
    size = (round(image.width * scale), round(image.height * scale))
    return image.resize(size, way)


SOFT = 0.75  # pixels of blur
BICUBIC, LANCZOS = Image.Resampling.BICUBIC, Image.Resampling.LANCZOS
BILINEAR, NEAREST = Image.Resampling.BILINEAR, Image.Resampling.NEAREST


@pytest.mark.parametrize("quality", [30, 75])
@pytest.mark.parametrize("way", [BICUBIC, LANCZOS, BILINEAR, NEAREST])
@pytest.mark.parametrize("scale", [2.0, 3.0])
def test_an_enlargement_is_worth_less(
    tmp_path: Path, scale: float, way: Image.Resampling, quality: int
) -> None:
    image = photograph()
    image.save(tmp_path / "original.png")
    enlarged(image, scale, way).save(tmp_path / "large.jpg", quality=quality)
    found = [quality_of(f"{tmp_path}/{name}") for name in ("original.png", "large.jpg")]
    original, large = beside_others(found)
    assert original.detail == 1 and large.detail < 1
    assert large.worth < original.worth


@pytest.mark.parametrize("scale", [1.4, 1.6, 2.3, 3.7])
@pytest.mark.parametrize("quality", [None, 60])
def test_pixels_repeated_at_a_fraction_are_told(
    tmp_path: Path, scale: float, quality: int | None
) -> None:
    file = str(tmp_path / ("a.jpg" if quality else "a.png"))
    enlarged(photograph(), scale, NEAREST).save(file, **({"quality": quality} if quality else {}))
    assert quality_of(file).detail == pytest.approx(1 / scale, abs=0.02)


def test_the_blocks_of_a_poor_jpeg_are_no_repeated_pixels(tmp_path: Path) -> None:
    photograph().save(tmp_path / "a.jpg", quality=15)
    assert quality_of(f"{tmp_path}/a.jpg").detail >= 0.5


# name of the one to keep -> of the one to remove
PAIRS: dict[str, Callable[[Path, Image.Image], tuple[str, str]]] = {}


def pair(make: Callable[[Path, Image.Image], tuple[str, str]]) -> None:
    PAIRS[make.__name__] = make


@pair
def lossless_and_jpeg(folder: Path, image: Image.Image) -> tuple[str, str]:
    image.save(folder / "b.png")
    image.save(folder / "a.jpg", quality=95)
    return "b.png", "a.jpg"


@pair
def jpeg_and_worse_jpeg(folder: Path, image: Image.Image) -> tuple[str, str]:
    image.save(folder / "b.jpg", quality=95)
    # More bytes by a comment, and a name that comes first.
    image.save(folder / "a.jpg", quality=30, comment=b"x" * 60_000)
    return "b.jpg", "a.jpg"


@pair
def camera_and_stripped(folder: Path, image: Image.Image) -> tuple[str, str]:
    image.save(folder / "b.jpg", quality=90, exif=with_exif())
    image.save(folder / "a.jpg", quality=90, comment=b"x" * 1000)
    return "b.jpg", "a.jpg"


@pair
def whole_and_crop(folder: Path, image: Image.Image) -> tuple[str, str]:
    image.save(folder / "b.jpg", quality=90)
    image.crop((10, 8, 310, 232)).save(folder / "a.png")
    return "b.jpg", "a.png"


@pair
def whole_and_enlarged_crop(folder: Path, image: Image.Image) -> tuple[str, str]:
    image.save(folder / "b.png")
    enlarged(image.crop((10, 8, 310, 232)), 2, BICUBIC).save(folder / "a.png")
    return "b.png", "a.png"


@pair
def lossless_and_lossless_enlargement(folder: Path, image: Image.Image) -> tuple[str, str]:
    image.save(folder / "b.png")
    enlarged(image, 4, NEAREST).save(folder / "a.png")
    return "b.png", "a.png"


@pair
def large_jpeg_and_lossless_thumbnail(folder: Path, image: Image.Image) -> tuple[str, str]:
    image.save(folder / "b.jpg", quality=60)
    image.resize((160, 120)).save(folder / "a.png")
    return "b.jpg", "a.png"


@pair
def clean_jpeg_and_lossless_copy_of_a_bad_one(folder: Path, image: Image.Image) -> tuple[str, str]:
    image.save(folder / "b.jpg", quality=90)
    image.save(folder / "bad.jpg", quality=15)
    Image.open(folder / "bad.jpg").save(folder / "a.png")
    (folder / "bad.jpg").unlink()
    return "b.jpg", "a.png"


@pair
def colour_and_grey(folder: Path, image: Image.Image) -> tuple[str, str]:
    image.save(folder / "b.jpg", quality=85)
    image.convert("L").save(folder / "a.png")
    return "b.jpg", "a.png"


@pair
def colour_and_grey_of_16_bits(folder: Path, image: Image.Image) -> tuple[str, str]:
    image.save(folder / "b.jpg", quality=85)
    grey = np.asarray(image.convert("L")).astype(">u2") * 257
    Image.frombytes("I;16B", image.size, grey.astype(">u2").tobytes()).save(folder / "a.tif")
    return "b.jpg", "a.tif"


@pair
def lossless_and_lossy_webp(folder: Path, image: Image.Image) -> tuple[str, str]:
    image.save(folder / "b.webp", lossless=True)
    image.save(folder / "a.webp", quality=50)
    return "b.webp", "a.webp"


@pair
def all_colours_and_a_palette(folder: Path, image: Image.Image) -> tuple[str, str]:
    image.save(folder / "b.png")
    image.convert("P").save(folder / "a.gif")
    return "b.png", "a.gif"


def soft(folder: Path) -> Image.Image:
    """A soft photograph, which might be an enlargement of one that is not there."""
    photograph(1).filter(ImageFilter.GaussianBlur(SOFT)).save(folder / "b.jpg", quality=92)
    return Image.open(folder / "b.jpg")


@pair
def soft_and_darker(folder: Path, _: Image.Image) -> tuple[str, str]:
    ImageEnhance.Brightness(soft(folder)).enhance(0.7).save(folder / "a.jpg", quality=90)
    return "b.jpg", "a.jpg"


@pair
def soft_and_crop(folder: Path, _: Image.Image) -> tuple[str, str]:
    soft(folder).crop((24, 24, 296, 216)).save(folder / "a.jpg", quality=90)
    return "b.jpg", "a.jpg"


@pair
def soft_and_slight_enlargement(folder: Path, _: Image.Image) -> tuple[str, str]:
    enlarged(soft(folder), 1.5, BICUBIC).save(folder / "a.jpg", quality=90)
    return "b.jpg", "a.jpg"


@pytest.mark.parametrize("name", PAIRS)
def test_the_best_is_kept(name: str, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    kept, copy = PAIRS[name](tmp_path / "images", photograph(1))
    found = run(tmp_path / "images", 0.5)
    assert pairs(found) == {copy: kept}
    script = write_results(found, tmp_path / "out")[2]
    assert shell(script, "--yes", cwd=tmp_path).returncode == 0
    assert [path.name for path in (tmp_path / "images").iterdir()] == [kept]


def test_what_was_judged_is_in_the_table_and_on_the_page(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    image = photograph()
    image.save(tmp_path / "images" / "a.png")
    enlarged(image, 2, BICUBIC).save(tmp_path / "images" / "b.jpg", quality=30)
    found = run(tmp_path / "images", 0.9)
    table, page, _ = write_results(found, tmp_path / "out")
    with table.open(newline="") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    assert (rows["a.png"]["detail"], rows["a.png"]["compression"]) == ("1.0", "lossless")
    assert float(rows["b.jpg"]["detail"]) <= 0.5 and rows["b.jpg"]["compression"] == "JPEG 30"
    assert "JPEG 30, detail of " in page.read_text()
    [group] = found.to_json()["groups"]
    assert [m["compression"] for m in group["members"]] == ["lossless", "JPEG 30"]


# --- the reference ----------------------------------------------------------------------


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """An archive with two copies of one photo, and an inbox with better and with other files."""
    for name in ("archive", "inbox"):
        (tmp_path / name).mkdir()
    for name in ("small.jpg", "smaller.jpg"):
        photograph(1).resize((160, 120)).save(tmp_path / "archive" / name, quality=50)
    photograph(1).save(tmp_path / "inbox" / "better.png")
    shutil.copy(tmp_path / "archive" / "small.jpg", tmp_path / "inbox" / "same.jpg")
    photograph(2).save(tmp_path / "inbox" / "new.png")
    photograph(2).save(tmp_path / "inbox" / "new.jpg")
    return tmp_path


@pytest.mark.parametrize("source", ["inbox", "."])
@pytest.mark.parametrize("keep", ["best", "first"])
def test_a_reference_is_never_touched(
    archive: Path, source: str, keep: str, capsys: Captured
) -> None:
    command = ("dedup", source, "--model", TEACHER, "--threshold", 0.9, "--out", "o")
    prints(capsys, *command, "--keep", keep, "--reference", "archive")
    with (archive / "o" / "groups.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    held = [row for row in rows if row["reference"] == "yes"]
    assert {(row["keep"], row["copy_of"] == row["id"]) for row in held} == {("yes", True)}
    assert len(held) == 2
    done = shell(archive / "o" / "delete.sh", "--yes", cwd=archive)
    assert done.returncode == 0 and b"3 deleted" in done.stdout
    assert len(list((archive / "archive").iterdir())) == 2
    left = {path.name for path in (archive / "inbox").iterdir()}
    assert left == {"new.png"} if keep == "best" else {"new.jpg"}
    assert "in the reference" in (archive / "o" / "groups.html").read_text()


def test_a_reference_of_nothing_is_refused(archive: Path, capsys: Captured) -> None:
    command = ("dedup", "inbox", "--model", TEACHER, "--threshold", 0.9, "--reference")
    assert "is no folder" in fails(capsys, *command, "nowhere")
    (archive / "empty").mkdir()
    assert "empty" in fails(capsys, *command, "empty")


@pytest.mark.parametrize("source", ["inbox", "."])
def test_patterns_choose_in_the_reference_too(archive: Path, source: str, capsys: Captured) -> None:
    command = ("dedup", source, "--model", TEACHER, "--threshold", 0.9, "--csv", "groups.csv")
    prints(capsys, *command, "--reference", "archive", "--exclude", "smaller.*")
    with (archive / "groups.csv").open(newline="") as file:
        held = [row["path"] for row in csv.DictReader(file) if row["reference"] == "yes"]
    assert held == [str(archive / "archive" / "small.jpg")]


def test_a_reference_of_a_store_is_a_part_of_it(archive: Path, capsys: Captured) -> None:
    prints(capsys, "embed", "archive", "--teacher", TEACHER, "--out", "store")
    with open_collection(Path("store"), None, None, reference=Path("archive")) as collection:
        assert len(collection.reference) == 2
        assert deduplicate(collection, 0.9).copies == []
    with (
        pytest.raises(ConfigError, match="none of the images compared is in the reference"),
        open_collection(Path("store"), None, None, reference=Path("inbox")),
    ):
        pass


# --- mirrored and rotated ---------------------------------------------------------------

TURNS = {
    "left-right": Image.Transpose.FLIP_LEFT_RIGHT,
    "upside-down": Image.Transpose.FLIP_TOP_BOTTOM,
    "quarter": Image.Transpose.ROTATE_90,
    "half": Image.Transpose.ROTATE_180,
    "three-quarters": Image.Transpose.ROTATE_270,
    "transposed": Image.Transpose.TRANSPOSE,
    "transverse": Image.Transpose.TRANSVERSE,
}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [3, 4])
def test_mirrored_and_rotated_copies_on_request(seed: int, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    photograph(seed, 240, 240).save(tmp_path / "images" / "0.png")
    photograph(seed + 2, 240, 240).save(tmp_path / "images" / "other.png")
    for name, turn in TURNS.items():
        image = photograph(seed, 240, 240).transpose(turn)
        image.save(tmp_path / "images" / f"{name}.jpg", quality=90)

    def found(*also: str) -> set[str]:
        model = load(TEACHER)
        with open_collection(
            tmp_path / "images",
            model,
            tmp_path / "cache",
            also=also,  # type: ignore[arg-type]
        ) as collection:
            copies = pairs(deduplicate(collection, 0.97))
        return {name.removesuffix(".jpg") for name, kept in copies.items() if kept == "0.png"}

    assert found() == set()
    assert found("mirrored") >= {"left-right", "upside-down"}
    assert found("rotated") >= {"quarter", "half", "three-quarters"}
    assert found("mirrored", "rotated") == set(TURNS)


def test_mistakes_in_also_are_one_line(archive: Path, capsys: Captured) -> None:
    command = ("dedup", "inbox", "--model", TEACHER, "--threshold", 0.9)
    assert "--also takes mirrored" in fails(capsys, *command, "--also", "upside-down")
    prints(capsys, *command, "--also", "mirrored,rotated")
    prints(capsys, "embed", "archive", "--teacher", TEACHER, "--out", "store")
    said = fails(capsys, "dedup", "store", "--threshold", 0.9, "--also", "mirrored")
    assert "upright images only" in said
