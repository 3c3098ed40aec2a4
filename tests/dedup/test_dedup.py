"""Near-duplicates of real drawings: what is found, kept and shown."""

from __future__ import annotations

import csv
import json
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any, Literal

import pytest
from PIL import Image, ImageEnhance

from command_line import Captured, fails, prints
from copies import TEACHER, hostile_copies, pairs, run, shell
from helpers import write_groups, write_image
from whiten.datasets.finding import find_items
from whiten.dedup import deduplicate, open_collection
from whiten.dedup.page import MOST_GROUPS, groups_page
from whiten.dedup.writing import COLUMNS, write_results
from whiten.embedding.opening import load
from whiten.errors import ConfigError, NoImagesError
from whiten.media.pixels import Pictures

pytestmark = pytest.mark.usefixtures("small_pictures")


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


@pytest.mark.parametrize("keep", ["best", "first"])
def test_what_has_more_than_its_first_frame_is_kept(
    keep: Literal["best", "first"], tmp_path: Path
) -> None:
    """A copy of the first page, or frame, is all that a comparison tells."""
    folder = tmp_path / "images"
    image = Image.open(write_image(folder / "a.png", 1)).convert("RGB")
    other = Image.open(write_image(tmp_path / "other.png", 2)).convert("RGB")
    several: dict[str, Any] = {"save_all": True, "append_images": [other]}
    image.save(folder / "b.png", **several)
    image.save(folder / "b.tif", **several)
    image.save(folder / "b.webp", lossless=True, **several)
    shutil.copy(folder / "b.tif", folder / "c.tif")
    image.save(folder / "d.jpg", "MPO", quality=95, **several)  # as cameras write it
    with open_collection(folder, load(TEACHER), None) as collection:
        found = deduplicate(collection, 0.99, keep=keep)
    (group,) = found.groups
    kinds = {member.id: member.kind for member in group.members}
    assert [kinds[name] for name in ("b.png", "b.tif", "b.webp")] == ["kept"] * 3
    assert kinds["c.tif"] == "exact"
    assert kinds["d.jpg"] == "near", "the other picture of a camera's file is of the same scene"
    assert "the first of 2 frames" in groups_page(found, "groups.csv")


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


def test_patterns_choose_among_the_images_that_a_whitening_is_fitted_on(
    tmp_path: Path, capsys: Captured
) -> None:
    images = write_groups(tmp_path / "images", dict.fromkeys("abcd", 4))
    command = ("--model", f"fuse:whitened:{TEACHER}", "--threshold", -0.9, "--json")
    first = json.loads(prints(capsys, "dedup", images, *command, "--exclude", "d")[0])
    shutil.rmtree(images / "d")
    assert json.loads(prints(capsys, "dedup", images, *command)[0]) == first


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
    with pytest.raises(NoImagesError, match="none of 1 images could be embedded"):
        run(tmp_path / "images", 0.9)


# --- going on ---------------------------------------------------------------------------


def test_another_threshold_embeds_nothing(
    copied: tuple[Path, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = copied
    model = load(TEACHER)
    first = run(folder, 0.97, cache=tmp_path / "cache")
    monkeypatch.setattr(
        type(model.parts[0].teacher), "embed_usable", lambda *a, **k: pytest.fail("again")
    )
    with open_collection(folder, model, tmp_path / "cache") as collection:
        second = deduplicate(collection, 0.5)
        again = deduplicate(collection, 0.97)
    assert again.groups == first.groups
    assert len(second.copies) > len(first.copies)


def test_a_run_that_was_cut_short_goes_on(
    copied: tuple[Path, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from whiten.embedding import embed as embed_module

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
        pytest.raises(ConfigError, match="add --model"),
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
    both = load(f"fuse:raw:{TEACHER},{TEACHER}?size=24")
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
    assert "12 kept, 3 byte-identical copies of these, 9 near-duplicates" in out
    assert "… and 2 more: add --out FOLDER or --csv FILE" in out
    assert not (tmp_path / "out").exists()
    out, err = prints(capsys, *command, "--out", "out", "--csv", "table.csv")
    assert "out/delete.sh lists what it would delete" in err
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"groups.csv", "groups.html", "delete.sh", "embeddings"}
    assert (tmp_path / "table.csv").read_bytes() == (tmp_path / "out/groups.csv").read_bytes()
    as_json = json.loads(prints(capsys, *command, "--keep", "first", "--json")[0])
    assert as_json["count"] == 32 and len(as_json["groups"]) == 12
    kept = [m["id"] for g in as_json["groups"] for m in g["members"] if m["keep"] == "yes"]
    assert all("-copy" in name for name in kept), "a hyphen comes before a full stop"


def test_copies_in_shards_have_no_script_to_run(
    copied: tuple[Path, dict[str, str]], tmp_path: Path, capsys: Captured
) -> None:
    with tarfile.open(tmp_path / "photos.tar", "w") as shard:
        shard.add(copied[0], "photos")
    command = ("dedup", tmp_path / "photos.tar", "--student", TEACHER, "--threshold", 0.97)
    out, err = prints(capsys, *command, "--out", "out")
    assert "3 byte-identical copies" in out
    assert "out/delete.sh" in err and "lists what it would delete" not in err


def test_mistakes_are_one_line(copied: tuple[Path, dict[str, str]], capsys: Captured) -> None:
    command = ("dedup", copied[0], "--student", TEACHER)
    assert "give one of --threshold and --target-precision" in fails(capsys, *command)
    both = ("--threshold", 0.9, "--target-precision", 0.9)
    assert "give one of" in fails(capsys, *command, *both)
    chosen = ("--threshold", 0.9, "--positives", "views")
    assert "--positives chooses the threshold: give" in fails(capsys, *command, *chosen)
    assert "threshold must be" in fails(capsys, *command, "--threshold", 1.5)
    # Before anything is embedded: there is no line of progress.
    assert "between 0 and 1" in fails(capsys, *command, "--target-precision", "nan")
    missing = fails(capsys, "dedup", "nowhere", "--student", TEACHER, "--threshold", 0.9)
    assert "nowhere does not exist" in missing
    assert "add --model" in fails(capsys, "dedup", copied[0], "--threshold", 0.9)
