"""Results on stdout, as text and as JSON: embed, evaluate, search, teachers, doctor."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from command_line import Captured, fails, prints
from helpers import TEACHER, write_groups, write_image
from whiten.cli.terminal import print_json
from whiten.embedding import opening


def test_embed_goes_on(capsys: Captured, images: Path) -> None:
    command = ("embed", images, "--teacher", TEACHER, "--out", "store", "--views", "2")
    out, err = prints(capsys, *command)
    assert out == "store: 32 embeddings of 12 dimensions\n"
    assert "skipped" not in err
    write_image(images / "a" / "new.png", seed=9)
    (images / "a" / "broken.png").write_bytes(b"no image")
    (images / "b" / "empty.png").write_bytes(b"")
    out, err = prints(capsys, *command)
    assert out == "store: 34 embeddings of 12 dimensions\n"
    assert "2 images skipped:\n  a/broken.png: " in err
    assert "\n  b/empty.png: empty file\n" in err
    out, _ = prints(capsys, *command, "--json")
    summary = json.loads(out)
    assert (summary["store"], summary["embeddings"], summary["dim"]) == ("store", 34, 12)
    assert [skip["id"] for skip in summary["skipped"]] == ["a/broken.png", "b/empty.png"]


def test_json_has_no_nan(capsys: Captured) -> None:
    print_json({"loss": math.nan, "rows": [(math.inf, 0.5), {"low": -math.inf}]})
    written = capsys.readouterr().out

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    facts = json.loads(written, parse_constant=refuse)
    assert facts == {"loss": None, "rows": [[None, 0.5], {"low": None}]}


def test_evaluate(capsys: Captured, images: Path) -> None:
    out, _ = prints(capsys, "evaluate", images, "--model", TEACHER)
    assert out.splitlines()[0] == "colour_teachers:make: 16 queries, 16 images"
    assert "  recall@1   1.0000  [1.0000, 1.0000]" in out.splitlines()
    facts = json.loads(prints(capsys, "evaluate", images, "--model", TEACHER, "--json")[0])
    assert facts["recall@1"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    write_image(images / "lonely" / "0.png", seed=77)
    out, err = prints(capsys, "evaluate", images, "--model", TEACHER, "--embeddings", "cache")
    assert out.splitlines()[0] == "colour_teachers:make: 16 queries, 17 images"
    assert "1 query left out" in err
    assert any(Path("cache").rglob("*.parquet"))


def test_evaluate_refuses_images_that_are_no_task_before_it_opens_the_model(
    capsys: Captured, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "open_model", lambda *_, **__: pytest.fail("opened"))
    command = ("evaluate", images / "a", "--model", TEACHER)
    assert "needs a folder for each of at least 2 groups" in fails(capsys, *command)
    assert "does not exist" in fails(capsys, "evaluate", images, "--queries", "no", *command[2:])
    assert "source" in fails(capsys, "evaluate", images, "--source-column", "shop", *command[2:])


def test_evaluate_whitened_fusion(capsys: Captured, images: Path) -> None:
    uri = f"fuse:whitened:{TEACHER},{TEACHER}?seed=1"
    command = (
        "evaluate",
        images,
        "--model",
        uri,
        "--whiten-on",
        images,
        "--whiten-dim",
        "3",
        "--json",
    )
    facts = json.loads(prints(capsys, *command)[0])
    assert facts["dim"] == 6


def test_search(capsys: Captured, images: Path) -> None:
    query = images / "b" / "2.png"
    command = ("search", query, "--student", TEACHER, "--in", images, "--index", "index")
    out, _ = prints(capsys, *command, "--k", "3")
    lines = out.splitlines()
    assert lines[0] == f"1.0000  {query}"
    assert len(lines) == 3
    out, _ = prints(capsys, *command, "--k", "3", "--paths-only")
    assert out.splitlines() == [line[8:] for line in lines]
    hits = json.loads(prints(capsys, *command, "--json")[0])
    assert len(hits) == 10
    assert (hits[0]["id"], hits[0]["path"]) == ("b/2.png", str(query))
    assert hits[0]["score"] == pytest.approx(1, abs=1e-5)
    line = fails(capsys, *command[:3], f"{TEACHER}?seed=1", *command[4:])
    assert "made with another model" in line


def test_search_opens_a_page(
    capsys: Captured, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    options = ("--student", TEACHER, "--in", images, "--index", "index", "--open")
    _, err = prints(capsys, "search", images / "b" / "2.png", *options)
    [page] = tmp_path.glob("whiten-*.html")
    assert opened == [page.as_uri()]
    assert f"page     {page}" in err


@pytest.mark.slow
def test_file_names_that_are_not_text(tmp_path: Path) -> None:
    images = write_groups(tmp_path / "images", {"a": 2})
    name = os.fsdecode(b"caf\xe9.png")
    try:
        (images / "a" / "0.png").rename(images / "a" / name)
    except OSError:
        pytest.skip("the file system takes text names only")
    command = [sys.executable, "-m", "whiten", "search", str(images / "a" / name)]
    command += ["--student", TEACHER, "--in", str(images), "--index", "index", "--k", "1"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "code"), "PYTHONUTF8": "1"}

    def search(*options: str) -> bytes:
        done = subprocess.run([*command, *options], capture_output=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert search("--paths-only") == os.fsencode(images / "a" / name) + b"\n"
    [hit] = json.loads(search("--json").decode())
    assert hit == {**hit, "id": r"a/caf\xe9.png", "path": str(images / "a" / name)}


def test_teachers_are_listed(capsys: Captured) -> None:
    out, err = prints(capsys, "teachers")
    assert "demo:mobilenetv2" in out.splitlines()
    assert "timm:" in err and "write a URI" in err
    out, err = prints(capsys, "teachers", "test_efficientnet")
    assert "timm:test_efficientnet.r160_in1k" in out.splitlines()
    assert err == ""
    listed = json.loads(prints(capsys, "teachers", "timm:test_res*", "--json")[0])
    assert listed and all(uri.startswith("timm:test_res") for uri in listed)
    assert "timm:test_resnet.r160_in1k" in prints(capsys, "teachers", "timm:test_res")[0]
    assert "no model matches 'xyzzy'" in fails(capsys, "teachers", "xyzzy")
    assert "did you mean" in fails(capsys, "teachers", "demo:mobilenetv1")


def test_a_teacher_is_described(capsys: Captured) -> None:
    facts = json.loads(prints(capsys, "teachers", "demo:mobilenetv2", "--json")[0])
    assert facts["uri"] == "demo:mobilenetv2"
    assert facts["dim"] > 0 and facts["params"] > 1e6 and facts["macs"] > 1e6
    out, _ = prints(capsys, "teachers", TEACHER)
    described = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert (described["uri"], described["dim"], described["params"]) == (TEACHER, "12", "156")
    assert described["input"].startswith("32x32 px")


def test_doctor(capsys: Captured) -> None:
    out, _ = prints(capsys, "doctor")
    assert "torch" in out and "device" in out
    found = json.loads(prints(capsys, "doctor", "--json")[0])
    assert found["facts"]["torch"]
    assert found["facts"]["runtime"].startswith("auto is ")
    assert isinstance(found["advice"], list)
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))
    extras = {name.removeprefix("extra ") for name in found["facts"] if name.startswith("extra ")}
    for_developers = {"bench", "docs", "dev"}
    assert extras == project["project"]["optional-dependencies"].keys() - for_developers - {"onnx"}
