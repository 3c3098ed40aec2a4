"""Near-duplicates of real drawings and of videos: what is found, kept, shown and deleted."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageEnhance

from command_line import Captured, fails, prints
from helpers import write_image
from whiten import encoder as encoder_module
from whiten.dedup import Deduplication, deduplicate, open_collection
from whiten.dedup.page import MOST_GROUPS, groups_page
from whiten.dedup.pixels import Pictures
from whiten.dedup.script import deletion_script
from whiten.dedup.writing import COLUMNS, write_results
from whiten.encoder import load
from whiten.errors import ConfigError, NoImagesError
from whiten.media import find_items

HOSTILE = [
    "it's.png",
    "two\nlines.png",
    "-rf.png",
    "$(touch owned).png",
    "`touch owned`.png",
    'quo"te.png',
    "back\\slash.png",
    " blank .png",
    "*.png",
    "ümlaut.png",
    os.fsdecode(b"not-utf8-\xff.png"),
    "--.png",
    "semi;colon & and.png",
    "{{brace}}%s.png",
]

TEACHER = "python:small_pictures:make"
FACTORY = '''
"""Sees an image as 8 × 8 pixels, without their mean."""

from torch import nn

from whiten.views import Preprocess


class Centre(nn.Module):
    def forward(self, x):
        return x - x.mean((2, 3), keepdim=True) + 0.01


def make(size="32"):
    layers = nn.Sequential(nn.AdaptiveAvgPool2d(8), Centre(), nn.Flatten())
    return layers, Preprocess(size=(int(size), int(size)))
'''


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder to work in, and a model that costs nothing."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "small_pictures.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Bundled drawings that differ: of one vendor, from all over the set."""
    root = tmp_path_factory.mktemp("drawings")
    with resources.as_file(resources.files("whiten") / "data" / "emoji.parquet") as path:
        table = pq.read_table(path, columns=["group", "vendor", "image"])
    rows = [row for row in table.to_pylist() if row["vendor"] == "fluent"][7::83]
    for row in rows:
        (root / f"{row['group']}.webp").write_bytes(row["image"])
    return sorted(root.iterdir())


@pytest.fixture
def copied(drawings: list[Path], tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A folder of drawings, some with copies; and of each copy the original's id."""
    folder = tmp_path / "images"
    folder.mkdir()
    origin: dict[str, str] = {}
    for number, path in enumerate(drawings[:20]):
        name = f"{number:02d}"
        shutil.copy(path, folder / f"{name}.webp")
        image = Image.open(path).convert("RGB")
        if number < 12:
            if number % 4 == 0:
                image.save(folder / f"{name}-copy.jpg", quality=70)
            elif number % 4 == 1:
                image.resize((40, 40)).save(folder / f"{name}-copy.png")
            elif number % 4 == 2:
                image.crop((1, 1, 63, 63)).save(folder / f"{name}-copy.png")
            else:
                shutil.copy(path, folder / f"{name}-copy.webp")
            [made] = folder.glob(f"{name}-copy*")
            origin[made.name] = f"{name}.webp"
    return folder, origin


def run(folder: Path, threshold: float, *, cache: Path | None = None) -> Deduplication:
    with open_collection(folder, load(TEACHER), cache) as collection:
        return deduplicate(collection, threshold)


def pairs(found: Deduplication) -> dict[str, str]:
    return {member.id: member.copy_of for member in found.copies}


# --- what is found ----------------------------------------------------------------------


def test_copies_of_drawings_are_found(copied: tuple[Path, dict[str, str]]) -> None:
    folder, origin = copied
    found = run(folder, 0.97)
    assert found.count == 32
    # The resized ones have fewer pixels and so have the cropped; of equal size the larger file
    # stays, which of the re-encoded ones may be the copy.
    joined = {frozenset(pair) for pair in pairs(found).items()}
    assert joined == {frozenset(pair) for pair in origin.items()}
    kinds = {member.id: member.kind for group in found.groups for member in group.members}
    assert {n for n, kind in kinds.items() if kind == "exact"} == {
        "03.webp", "07.webp", "11.webp",
    }, "of equals the first by path stays, and a hyphen comes before a full stop"  # fmt: skip
    for group in found.groups:
        kept, copy = group.members
        assert kept.is_kept and not copy.is_kept
        assert kept.width * kept.height >= copy.width * copy.height
        assert copy.similarity == 1 if copy.kind == "exact" else copy.similarity >= 0.97
        assert group.lowest <= copy.similarity + 1e-6
        assert kept.bytes == (folder / kept.id).stat().st_size


def test_the_best_or_the_first_is_kept(tmp_path: Path) -> None:
    image = Image.open(write_image(tmp_path / "images" / "b.png", 1))
    image.resize((64, 64), Image.Resampling.NEAREST).save(tmp_path / "images" / "c.png")
    image.save(tmp_path / "images" / "a.bmp")  # as many pixels as b, more bytes
    (tmp_path / "images" / "0.png").symlink_to("c.png")
    with open_collection(tmp_path / "images", load(TEACHER), None) as collection:
        best = deduplicate(collection, 0.999, keep="best")
        first = deduplicate(collection, 0.999, keep="first")
    assert [m.id for m in best.groups[0].members if m.is_kept] == ["c.png"]
    # A link is never kept in place of a file: it may point to the one that goes.
    assert [m.id for m in first.groups[0].members if m.is_kept] == ["a.bmp"]
    assert {m.id for m in best.copies} == {"0.png", "a.bmp", "b.png"}
    assert {m.kind for m in best.copies if m.id == "0.png"} == {"exact"}


def test_groups_that_are_linked_through_others_keep_several(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for step in range(9):  # a bar that wanders
        image = Image.new("RGB", (64, 64), "white")
        image.paste((0, 0, 160), (4 * step, 0, 4 * step + 24, 64))
        image.save(tmp_path / "images" / f"{step}.png")
    found = run(tmp_path / "images", 0.7)
    [group] = found.groups
    assert len(group.members) == 9
    assert group.lowest < 0
    kept = [member.id for member in group.members if member.is_kept]
    assert len(kept) > 1
    assert all(member.similarity >= 0.7 for member in found.copies)
    assert {member.copy_of for member in found.copies} <= set(kept)


def test_broken_images_are_listed(copied: tuple[Path, dict[str, str]], capsys: Captured) -> None:
    folder, _ = copied
    (folder / "bad.png").write_bytes(b"no image")
    (folder / "cut.jpg").write_bytes((folder / "00-copy.jpg").read_bytes()[:200])
    command = ("dedup", folder, "--student", TEACHER, "--threshold", 0.97)
    out, err = prints(capsys, *command, "--json")
    skipped = {skip["id"]: skip["reason"] for skip in json.loads(out)["skipped"]}
    assert set(skipped) == {"bad.png", "cut.jpg"}
    assert "2 images skipped:" in err and skipped["bad.png"] in err


def test_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "bad.png").write_bytes(b"no image")
    with pytest.raises(NoImagesError, match="none of 1 images could be read"):
        run(tmp_path / "images", 0.9)


# --- going on ---------------------------------------------------------------------------


def test_another_threshold_embeds_nothing(
    copied: tuple[Path, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = copied
    model = load(TEACHER)
    first = run(folder, 0.97, cache=tmp_path / "cache")
    monkeypatch.setattr(type(model.parts[0].teacher), "embed", lambda *a, **k: pytest.fail("again"))
    with open_collection(folder, model, tmp_path / "cache") as collection:
        second = deduplicate(collection, 0.5)
        again = deduplicate(collection, 0.97)
    assert again.groups == first.groups
    assert len(second.copies) > len(first.copies)


def test_a_run_that_was_cut_short_goes_on(
    copied: tuple[Path, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from whiten import embed as embed_module

    folder, _ = copied
    whole = run(folder, 0.97)
    monkeypatch.setattr(embed_module, "SHARD_ROWS", 8)
    model = load(TEACHER)
    teacher, count = model.parts[0].teacher, 0
    forward = teacher.forward

    def failing(pixels: object) -> object:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return forward(pixels)  # type: ignore[arg-type]

    monkeypatch.setattr(teacher, "forward", failing)
    with (
        pytest.raises(KeyboardInterrupt),
        open_collection(folder, model, tmp_path / "cache"),
    ):
        pass
    assert count == 3
    with open_collection(folder, model, tmp_path / "cache") as collection:
        assert deduplicate(collection, 0.97).groups == whole.groups
    assert count < 3 + 5, "what was embedded before is not embedded again"


def test_a_store_needs_no_student(
    copied: tuple[Path, dict[str, str]], tmp_path: Path, capsys: Captured
) -> None:
    folder, _ = copied
    prints(capsys, "embed", folder, "--teacher", TEACHER, "--out", "store")
    with open_collection(tmp_path / "store", None, None) as collection:
        stored = deduplicate(collection, 0.97)
    assert pairs(stored) == pairs(run(folder, 0.97))
    other = load(f"{TEACHER}?size=24")
    with (
        pytest.raises(ConfigError, match="holds embeddings of"),
        open_collection(tmp_path / "store", other, None),
    ):
        pass
    with (
        pytest.raises(ConfigError, match="add --student"),
        open_collection(folder, None, None),
    ):
        pass


def test_a_file_that_is_gone_is_not_kept(
    copied: tuple[Path, dict[str, str]], tmp_path: Path, capsys: Captured
) -> None:
    folder, _ = copied
    prints(capsys, "embed", folder, "--teacher", TEACHER, "--out", "store")
    (folder / "00-copy.jpg").unlink()
    with open_collection(tmp_path / "store", None, None) as collection:
        found = deduplicate(collection, 0.97, keep="first")
    [group] = (g for g in found.groups if any(m.id == "00.webp" for m in g.members))
    assert [(m.id, m.is_kept, m.bytes > 0) for m in group.members] == [
        ("00.webp", True, True), ("00-copy.jpg", False, False),
    ]  # fmt: skip
    script = write_results(found, tmp_path / "out")[2]
    assert b"00-copy.jpg: is not there" in shell(script, "--yes", cwd=tmp_path).stderr


def test_several_models_together(copied: tuple[Path, dict[str, str]]) -> None:
    folder, origin = copied
    both = encoder_module.load(f"fuse:raw:{TEACHER},{TEACHER}?size=24")
    with open_collection(folder, both, None) as collection:
        found = deduplicate(collection, 0.97)
    assert {frozenset(p) for p in pairs(found).items()} == {frozenset(p) for p in origin.items()}


# --- the table and the page -------------------------------------------------------------


def test_the_table_says_what_was_found(copied: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    found = run(copied[0], 0.97)
    write_results(found, tmp_path / "out")
    with (tmp_path / "out" / "groups.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    expected = [row for group in found.to_json()["groups"] for row in group["members"]]
    assert rows == [{name: str(value) for name, value in row.items()} for row in expected]
    # It is a table of images with groups for every other verb.
    items = find_items(tmp_path / "out" / "groups.csv")
    assert {item.path: item.group for item in items} == {r["path"]: r["group"] for r in rows}


def hostile_copies(root: Path) -> Iterator[tuple[Path, Path]]:
    """(kept, copy) with names that shells and pages stumble over; the kept one is larger."""
    (root / "images" / "big").mkdir(parents=True)
    for number, name in enumerate(HOSTILE):
        image = Image.fromarray(
            np.random.default_rng(number).integers(0, 256, (2, 2, 3), np.uint8)
        ).resize((32, 32), Image.Resampling.NEAREST)
        copy, kept = root / "images" / name, root / "images" / "big" / name
        image.save(copy, "PNG")
        image.resize((64, 64), Image.Resampling.NEAREST).save(kept, "PNG")
        yield kept, copy


def test_the_page_holds_names_of_all_kinds(tmp_path: Path) -> None:
    list(hostile_copies(tmp_path))
    shutil.copy(tmp_path / "images" / "--.png", tmp_path / "images" / "<b onload='x'>&amp;.png")
    found = run(tmp_path / "images", 0.999)
    page_path = write_results(found, tmp_path / "out")[1]
    page = page_path.read_text("utf-8")
    assert page.count("<figure") == sum(len(group.members) for group in found.groups) == 29
    assert page.count("data:image/jpeg;base64,") == 29
    assert "<b onload" not in page and "&lt;b onload=&#x27;x&#x27;&gt;&amp;amp;.png" in page
    assert r"not-utf8-\xff.png" in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "prefers-color-scheme: dark" in page


def test_very_many_groups_are_cut_on_the_page_alone(
    copied: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run(copied[0], 0.97)
    monkeypatch.setattr("whiten.dedup.page.MOST_GROUPS", 5)
    page = groups_page(found, "groups.csv")
    assert MOST_GROUPS > 5 and page.count("<section>") == 5
    assert "5 of 12 groups are shown here, all of them are in groups.csv" in page


# --- deletion ---------------------------------------------------------------------------


def shell(script: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[bytes]:
    command = ["sh", script, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, timeout=60)


def test_the_script_deletes_copies_of_hostile_names(tmp_path: Path) -> None:
    expected = list(hostile_copies(tmp_path))
    found = run(tmp_path / "images", 0.999)
    script = write_results(found, tmp_path / "out")[2]
    empty = tmp_path / "elsewhere"
    empty.mkdir()

    done = shell(script, cwd=empty)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(b"would delete ") == len(HOSTILE)
    assert f"{len(HOSTILE)} would be deleted, 0 left alone".encode() in done.stdout
    assert all(copy.exists() and kept.exists() for kept, copy in expected)

    assert shell(script, "--no", cwd=empty).returncode == 2
    assert all(copy.exists() for _, copy in expected)

    done = shell(script, "--yes", cwd=empty)
    assert done.returncode == 0, done.stderr
    assert f"{len(HOSTILE)} deleted, 0 left alone".encode() in done.stdout
    assert [kept for kept, copy in expected if copy.exists() or not kept.exists()] == []
    assert list(empty.iterdir()) == [], "nothing that stands in a name was run"
    assert sorted(p.name for p in (tmp_path / "images").iterdir()) == ["big"]


def test_the_script_leaves_alone_what_has_changed(tmp_path: Path) -> None:
    expected = list(hostile_copies(tmp_path))
    script = write_results(run(tmp_path / "images", 0.999), tmp_path / "out")[2]
    (kept_gone, a), (kept_other, b), (_, changed), (linked, c), (hard, d) = expected[:5]
    kept_gone.unlink()
    kept_other.write_bytes(b"something else")
    changed.write_bytes(changed.read_bytes() + b"more")
    moved = linked.with_name("moved")  # the content is right, but a link may go astray
    linked.rename(moved)
    linked.symlink_to(moved)
    d.unlink()
    os.link(hard, d)
    done = shell(script, "--yes", cwd=tmp_path)
    assert done.returncode == 0
    assert all(path.exists() for path in (a, b, changed, c, d))
    assert f"{len(HOSTILE) - 5} deleted, 5 left alone".encode() in done.stdout
    for reason in (b"the kept file is gone or has changed", b"it has changed", b"only a link"):
        assert reason in done.stderr
    assert sum(copy.exists() for _, copy in expected) == 5


def test_one_file_under_two_names_is_never_deleted(tmp_path: Path) -> None:
    image = write_image(tmp_path / "images" / "a.png", 1)
    (tmp_path / "again").symlink_to(tmp_path / "images")
    table = tmp_path / "table.csv"
    table.write_text("path\nimages/a.png\nagain/a.png\n")
    script = write_results(run(table, 0.99), tmp_path / "out")[2]
    done = shell(script, "--yes", cwd=tmp_path)
    assert image.exists()
    assert b"it is the kept file itself" in done.stderr and b"0 deleted, 1 left" in done.stdout


def test_the_script_without_b2sum(tmp_path: Path) -> None:
    [(kept, copy), *_] = hostile_copies(tmp_path)
    script = write_results(run(tmp_path / "images", 0.999), tmp_path / "out")[2]
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "rm", "cut"):
        path = shutil.which(name)
        assert path is not None
        (tools / name).symlink_to(path)
    (tools / "python3").write_text(f'#!{tools}/sh\nexec {sys.executable} "$@"\n')
    (tools / "python3").chmod(0o755)
    done = subprocess.run(
        ["sh", script, "--yes"], env={"PATH": str(tools)}, capture_output=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert kept.exists() and not copy.exists()
    (tools / "python3").unlink()
    done = subprocess.run(["sh", script], env={"PATH": str(tools)}, capture_output=True, timeout=60)
    assert done.returncode == 2 and b"needs b2sum" in done.stderr


def test_an_empty_script_runs(tmp_path: Path) -> None:
    nothing = Deduplication("image", 3, 0.9, None, [], [])
    (tmp_path / "delete.sh").write_bytes(deletion_script(nothing))
    done = shell(tmp_path / "delete.sh", "--yes", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout == b"0 deleted, 0 left alone\n"
    assert "0 groups" in groups_page(nothing, "groups.csv")


# --- pixels -----------------------------------------------------------------------------


def test_pixels_tell_copies_from_other_drawings(drawings: list[Path], tmp_path: Path) -> None:
    pictures, right, wrong = Pictures(), 0, 0
    for number, path in enumerate(drawings[:15]):
        image = Image.open(path).convert("RGB").resize((128, 128))
        edited = ImageEnhance.Brightness(image.crop((4, 4, 122, 122))).enhance(1.1)
        copy = tmp_path / f"{number}.jpg"
        edited.resize((80, 80)).save(copy, quality=60)
        right += pictures.same(str(path), str(copy))
        wrong += pictures.same(str(path), str(drawings[number + 1]))
    assert right >= 13
    assert wrong == 0
    assert not pictures.same(str(drawings[0]), str(tmp_path / "none.png"))


# --- the verb ---------------------------------------------------------------------------


def test_the_verb_prints_and_writes(
    copied: tuple[Path, dict[str, str]], tmp_path: Path, capsys: Captured
) -> None:
    folder, _ = copied
    command = ("dedup", folder, "--student", TEACHER, "--threshold", 0.97)
    out, err = prints(capsys, *command)
    assert out.startswith("32 images, 12 groups at a similarity of 0.9700 or more\n")
    assert "12 kept, 3 byte-identical copies, 9 near-duplicates" in out
    assert "… and 2 more: add --out FOLDER or --csv FILE" in out
    assert not (tmp_path / "out").exists()
    out, err = prints(capsys, *command, "--out", "out", "--csv", "table.csv")
    assert "out/delete.sh says what it would delete" in err
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"groups.csv", "groups.html", "delete.sh", "embeddings"}
    assert (tmp_path / "table.csv").read_bytes() == (tmp_path / "out/groups.csv").read_bytes()
    as_json = json.loads(prints(capsys, *command, "--keep", "first", "--json")[0])
    assert as_json["count"] == 32 and len(as_json["groups"]) == 12
    kept = [m["id"] for g in as_json["groups"] for m in g["members"] if m["keep"] == "yes"]
    assert all("-copy" in name for name in kept), "a hyphen comes before a full stop"


def test_mistakes_are_one_line(copied: tuple[Path, dict[str, str]], capsys: Captured) -> None:
    command = ("dedup", copied[0], "--student", TEACHER)
    assert "give one of --threshold and --target-precision" in fails(capsys, *command)
    both = ("--threshold", 0.9, "--target-precision", 0.9)
    assert "give one of" in fails(capsys, *command, *both)
    assert "threshold must be" in fails(capsys, *command, "--threshold", 1.5)
    missing = fails(capsys, "dedup", "nowhere", "--student", TEACHER, "--threshold", 0.9)
    assert "nowhere does not exist" in missing
    assert "add --student" in fails(capsys, "dedup", copied[0], "--threshold", 0.9)
