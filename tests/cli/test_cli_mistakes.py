"""Mistakes on the command line: one line on stderr that says what to do, and exit code 2."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from command_line import STUDENT, Captured, fails, prints
from helpers import TEACHER, write_groups
from whiten.errors import ConfigError
from whiten.utils.threads import ordered_map


def test_empty_folder(capsys: Captured, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no image file" in fails(
        capsys, "embed", empty, "--teacher", TEACHER, "--out", tmp_path / "store"
    )
    assert "holds no image file" in fails(capsys, "evaluate", empty, "--model", TEACHER)


@pytest.mark.parametrize("name", ["missing", "empty", "table.csv"])
@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "IMAGES"],
        ["evaluate", "IMAGES", "--protocol", "videos"],
        ["dedup", "IMAGES", "--threshold", "0.9"],
        ["compact", "IMAGES"],
        ["compact", "FULL", "--queries", "IMAGES"],
        ["search", "QUERY", "--in", "IMAGES"],
        ["index", "IMAGES", "--out", "index"],
    ],
)
def test_images_come_before_the_model(
    capsys: Captured, images: Path, tmp_path: Path, command: list[str], name: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "table.csv").write_text("path\n")
    query = next(images.rglob("*.png"))
    named = {"IMAGES": tmp_path / name, "FULL": images, "QUERY": query}
    line = fails(capsys, *(named.get(word, word) for word in command), "--model", "onnx:none.onnx")
    assert re.search("does not exist|holds no image file|has no rows", line)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["search", "none.png", "--in", "IMAGES"], "cannot read none.png"),
        (["search", "none.png", "--index", "index"], "cannot read none.png"),
        (["dedup", "IMAGES", "--threshold", "0.9", "--reference", "none"], "none is no folder"),
        (["evaluate", "IMAGES", "--protocol", "svd"], "is not SVD"),
        (["evaluate", "IMAGES", "--protocol", "rparis6k"], "holds neither rparis6k"),
    ],
)
def test_other_inputs_come_before_the_model(
    capsys: Captured, images: Path, command: list[str], message: str
) -> None:
    words = [images if word == "IMAGES" else word for word in command]
    assert message in fails(capsys, *words, "--model", "onnx:none.onnx")


def test_no_readable_image(capsys: Captured, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    for name in ("a/0.png", "a/1.png", "b/0.png"):
        (broken / name).parent.mkdir(parents=True, exist_ok=True)
        (broken / name).write_bytes(b"no image")
    for command in (
        ("embed", broken, "--teacher", TEACHER, "--out", tmp_path / "store"),
        ("evaluate", broken, "--model", TEACHER),
    ):
        line = fails(capsys, *command, progress="embed colour_teachers:make: 3/3")
        assert "none of 3 images could be embedded, first 'a/0.png'" in line


def test_help_shows_the_backticks_of_filters(capsys: Captured) -> None:
    assert "`my price` > 5" in prints(capsys, "search", "--help")[0]


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("tmi:resnet18", "did you mean 'timm'"),
        ("resnet18", "a URI is scheme:name"),
        ("demo:mobilnetv2", "did you mean 'mobilenetv2'"),
        ("timm:resnet_18", "did you mean"),
        ("python:colour_teachers:mak", "did you mean 'make'"),
        ("python:colour_teachers:make?colour=1", "colour"),
    ],
)
def test_unknown_teachers(capsys: Captured, images: Path, uri: str, message: str) -> None:
    assert message in fails(capsys, "embed", images, "--teacher", uri, "--out", "store")
    assert message in fails(capsys, "evaluate", images, "--model", uri)


def test_a_run_where_a_model_is_named(capsys: Captured, images: Path, run: Path) -> None:
    line = fails(capsys, "embed", images, "--model", run, "--out", "store")
    assert f"is a run: name its student, {run / 'student'}" in line


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--micro-batch", "must be an integer or auto, not 'many'"),
        ("--shrinkage", "must be a number or auto, not 'many'"),
        ("--epochs", "must be an integer, not 'many'"),
    ],
)
def test_a_value_of_the_wrong_kind(capsys: Captured, option: str, message: str) -> None:
    line = fails(capsys, "distill", "x", "--out", "r", "--teachers", TEACHER, option, "many")
    assert line == f"whiten: Invalid value for {option}: {message}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["distill", "x", "--out", "r", "--teacher", TEACHER], "mean --teachers?"),
        (["distill", "x", "--out", "r", "--teachers", TEACHER, "--epoch", "1"], "mean --epochs?"),
        (["embed", "x", "--teacher", TEACHER, "--out", "r", "--view", "2"], "mean --views?"),
        (["embd", "x"], '"embed"'),
        (["embed", "x", "--teacher", TEACHER], "--out"),
        (["distill", "x", "--out", "r", "--teachers", TEACHER, "--epochs", "many"], "many"),
    ],
)
def test_unknown_options(capsys: Captured, arguments: list[str], message: str) -> None:
    assert message in fails(capsys, *arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--views", "0"], "views must be at least 1, not 0"),
        (["--workers", "0"], "workers must be at least 1, not 0"),
        (["--precision", "16"], "precision must be auto, 32 or bf16, not '16'"),
        (["--dtype", "int8"], "dtype must be float32 or float16, not 'int8'"),
    ],
)
def test_options_of_embed(capsys: Captured, images: Path, options: list[str], message: str) -> None:
    assert message in fails(
        capsys, "embed", images, "--teacher", TEACHER, "--out", "store", *options
    )


def test_bf16_of_what_torch_does_not_compute(capsys: Captured, images: Path, run: Path) -> None:
    command = ("embed", images, "--out", "x", "--precision", "bf16", "--model")
    assert "leave out --precision bf16" in fails(capsys, *command, TEACHER, "--runtime", "onnx")
    prints(capsys, "embed", images, "--model", TEACHER, "--out", "store")
    assert "is stored as it is: leave out" in fails(capsys, *command, "store:store")
    assert not Path("x").exists()
    found = json.loads(prints(capsys, *command, run / "student", "--json")[0])
    assert found["runtime"] == "torch"  # whose graph, in float32, would embed otherwise
    again = json.loads(prints(capsys, *command[:4], "--model", run / "student", "--json")[0])
    assert again["runtime"] == "torch"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["diagnose", "--teachers", TEACHER, "IMAGES"], "name IMAGES before the options"),
        (["compact", "--model", TEACHER, "--kinds", "int8", "IMAGES"], "name IMAGES before"),
        (
            ["distill", "--out", "run", "--teachers", TEACHER, "IMAGES"],
            "is a folder without a student",
        ),
        (["evaluate", "IMAGES"], "--model needs a value"),
        (["evaluate", "IMAGES", "--model"], "--model needs a value"),
    ],
)
def test_images_among_the_values_of_an_option(
    capsys: Captured, images: Path, command: list[str], message: str
) -> None:
    line = fails(capsys, *[images if word == "IMAGES" else word for word in command])
    assert message in line


@pytest.mark.parametrize(
    "options", [("--teacher", TEACHER, "--student", TEACHER), ("--view", "0", "--dim", "0")]
)
def test_a_misspelt_option_is_named_before_values(
    capsys: Captured, images: Path, options: tuple[str, ...]
) -> None:
    line = fails(capsys, "distill", images, *options, "--out", "run")
    assert line == f"whiten: Unknown option: {options[0]}. Did you mean {options[0]}s?\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 2\n", "Did you mean --epochs?"),
        ("- 1\n", "must hold options, one `name: value` per line"),
        ("a: [\n", "cannot read c.yaml: while parsing"),
        ("[tool]\na = 1\n", "cannot read c.yaml: expected"),
        ("dim: eight\n", "eight"),
        (None, "cannot read c.yaml: [Errno 2]"),
        (b"\xff\xfe\x00", "cannot read c.yaml"),
    ],
)
@pytest.mark.parametrize("flag", [["--config", "c.yaml"], ["--config=c.yaml"]])
def test_configuration_files(
    capsys: Captured, images: Path, text: str | bytes | None, message: str, flag: list[str]
) -> None:
    if text is not None:
        Path("c.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert message in fails(capsys, "distill", images, "--teachers", TEACHER, "--out", "run", *flag)
    assert not Path("run").exists()


def test_a_folder_is_no_file_to_write(capsys: Captured, images: Path) -> None:
    message = f"{images} is a folder: name a file"
    assert message in fails(capsys, "evaluate", images, "--model", TEACHER, "--report", images)
    assert message in fails(capsys, "diagnose", images, "--teachers", TEACHER, "--out", images)
    assert message in fails(capsys, "compact", images, "--model", TEACHER, "--plot", images)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("compact", "--plot", "p.pdf"), "--plot writes .png files, not .pdf: write p.png"),
        (("dedup", "--threshold", "0.9", "--csv", "a/t.xlsx"), "not .xlsx: write a/t.csv"),
        (("evaluate", "--report", "page.PDF"), "--report writes .html files, not .PDF"),
        (("diagnose", "--out", "page.json"), "--out writes .html files, not .json"),
        (("compact", "--plot", "file/a/p.png"), "file is a file, not a folder: name another place"),
        (("dedup", "--threshold", "0.9", "--out", "file/a"), "file is a file, not a folder"),
        (("evaluate", "--report", "locked/page.html"), "locked may not be written to: name"),
    ],
)
def test_output_files_are_checked_before_the_work(
    capsys: Captured,
    images: Path,
    command: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path("file").touch()
    Path("locked").mkdir()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != "locked" and access(path, mode))
    verb, *options = command
    # The model does not exist: it would be told if it were opened first.
    model = "--teachers" if verb == "diagnose" else "--model"
    assert message in fails(capsys, verb, images, model, "missing", *options)


@pytest.mark.parametrize("workers", ["0", "-1"])
def test_threads_are_at_least_one(capsys: Captured, images: Path, workers: str) -> None:
    message = f"workers must be at least 1, not {workers}"
    export = ("export", images, "--model", "student", "--out", "x")
    for command in (export, ("frames", images, "--out", "x")):
        assert message in fails(capsys, *command, f"--workers={workers}")
    with pytest.raises(ConfigError, match=message):
        list(ordered_map(str, [1, 2], workers=int(workers)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("index", "IMAGES", "--model", TEACHER, "--out", "x", "--add", "--remove-missing"),
            "images are added (--add) or removed (--remove-missing), not both",
        ),
        (
            ("index", "IMAGES", "--out", "x", "--kind", "int8", "--recall", "0.9", "--model", "m"),
            "the kind int8 finds every hit: leave out the recall",
        ),
        (
            ("index", "--out", "x", "--remove", "a/0.png", "--model", TEACHER),
            "--model: only for images that are indexed",
        ),
        (
            ("index", "store", "--out", "x", "--cluster", "ray"),
            "store holds embeddings already: leave out --cluster",
        ),
        (
            ("index", "store", "--out", "x", "--model", f"{TEACHER}?seed=1"),
            f"store holds embeddings of {TEACHER}, not of {TEACHER}?seed=1: name that model",
        ),
        (("diagnose", "IMAGES", "--teachers", TEACHER, "--size", "64"), "name the student, or no"),
        (
            ("evaluate", "IMAGES", "--model", TEACHER, "--whiten-dim", "8"),
            "whiten_dim and shrinkage are of a whitening that is fitted",
        ),
        (
            ("evaluate", "IMAGES", "--model", TEACHER, "--shrinkage", "0.5"),
            "whiten_dim and shrinkage are of a whitening that is fitted",
        ),
        (
            ("evaluate", "IMAGES", "--model", TEACHER, "--omit-normalisation"),
            "--omit-normalisation: only with --protocol svd\n",
        ),
        (("export", "--model", "s", "--out", "x", "--int8-floor", "0.5"), "are limits of int8"),
        (("export", "--model", "s", "--out", "x", "--int8-loss", "0.5"), "are limits of int8"),
    ],
)
def test_options_that_would_be_ignored(
    capsys: Captured, images: Path, arguments: tuple[str, ...], message: str
) -> None:
    prints(capsys, "embed", images, "--model", TEACHER, "--out", "store")
    named = [images if argument == "IMAGES" else argument for argument in arguments]
    assert message in fails(capsys, *named)
    assert not Path("x").exists()


def test_the_recall_of_an_index_that_is_exact(capsys: Captured, images: Path) -> None:
    prints(capsys, "index", images, "--model", TEACHER, "--out", "x", "--kind", "exact")
    told = fails(capsys, "index", images, "--out", "x", "--recall", "0.9")
    assert "the kind exact finds every hit: leave out the recall" in told


def test_one_group(capsys: Captured, tmp_path: Path) -> None:
    one = write_groups(tmp_path / "one", {"a": 4})
    assert "the gallery has 1 group: " in fails(capsys, "evaluate", one, "--model", TEACHER)
    command = ("distill", one, "--teachers", TEACHER, "--student", STUDENT, "--out", "run")
    assert "found 1 group with two images or more" in fails(capsys, *command, "--pairs", "auto")


def test_a_store_of_another_model(capsys: Captured, images: Path) -> None:
    prints(capsys, "embed", images, "--teacher", TEACHER, "--out", "store")
    line = fails(capsys, "embed", images, "--teacher", f"{TEACHER}?seed=1", "--out", "store")
    assert "embeddings of another model" in line and "name another folder" in line


def test_unwritable_folder(capsys: Captured, images: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in ("file/out", "file"):
        for command in (
            ("embed", images, "--teacher", TEACHER, "--out", out),
            ("distill", images, "--teachers", TEACHER, "--student", STUDENT, "--out", out),
            (
                *("search", images / "a" / "0.png", "--student", TEACHER),
                *("--in", images, "--index", out),
            ),
        ):
            assert "file" in fails(capsys, *command)
    assert (tmp_path / "file").read_text() == ""


def test_a_file_in_the_place_of_a_folder(capsys: Captured, images: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert "name another place" in fails(
            capsys, "embed", images, "--model", TEACHER, "--out", out
        )
        assert "file is a file: name a folder for the index" in fails(
            capsys, "index", images, "--model", TEACHER, "--out", out
        )


def test_search_mistakes(capsys: Captured, images: Path) -> None:
    query = images / "a" / "0.png"
    options = ("--student", TEACHER, "--in", images, "--index", "index")
    assert "k must be at least 1, not 0" in fails(capsys, "search", query, *options, "--k", "0")
    assert "cannot read gone.png" in fails(capsys, "search", "gone.png", *options)
    assert "cannot read gone.JPG" in fails(capsys, "search", *options, "gone.JPG")
    Path("text.png").write_text("no image")
    assert "cannot read text.png" in fails(capsys, "search", "text.png", *options)
    assert "does not exist" in fails(
        capsys, "search", query, "--student", TEACHER, "--in", "gone", "--index", "index"
    )
    assert "add --index" in fails(capsys, "search", query, "--student", TEACHER, "--in", images)
    assert not Path("index").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("search", "x.png", "--index", "file:///a/b%20c"), "b%20c is no path: write /a/b c"),
        (("embed", "file:/a", "--model", "m", "--out", "out"), "file:/a is no path: write /a"),
        (("index", "x", "--out", "FILE://localhost/a"), "is no path: write /a"),
        (("index", "x", "--out", "postgresql://me@host/db"), "--out postgresql:// is no service"),
        (("embed", "x", "--model", "m", "--out", "s4://b/x"), "--out s4:// is no service that is"),
        (("embed", "x", "--model", "m", "--out", ""), "--out is empty: name a place"),
        (("index", "", "--model", "m", "--out", "x"), "IMAGES is empty: name a place"),
        (("search", "x.png", "--index", "x", ""), "--index is empty: name a place"),
        (("serve", ""), "INDEX is empty: name a place"),
        (("index", "x", "--store", "mlvus:x"), "--store mlvus: is no database; did you mean"),
        (("search", "x.png", "--store", "s3://b/x"), "a disk or a database, not from s3://: copy"),
        (("serve", "s3://b/x"), "read from a disk or a database, not from s3://: copy it to a"),
    ],
)  # fmt: skip
def test_addresses_that_are_no_places(
    capsys: Captured, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    before = [*tmp_path.iterdir()]
    assert message in fails(capsys, *arguments)
    assert [*tmp_path.iterdir()] == before


def test_a_store_in_the_current_folder(
    capsys: Captured, images: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "store").mkdir()
    monkeypatch.chdir(tmp_path / "store")
    assert "embeddings of" in prints(capsys, "embed", images, "--model", TEACHER, "--out", ".")[0]
