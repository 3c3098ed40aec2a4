"""The command line: results on stdout, one line on stderr for each mistake, and exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers import TEACHER, write_factory, write_groups, write_image
from whiten import cli
from whiten.run_folder import RunFolder

STUDENT = "timm:test_efficientnet?pretrained=0&size=64"
SMALL = ["--dim", "4", "--whiten-dim", "3", "--epochs", "1", "--batch-size", "4"]
HEAVY = ("torch", "timm", "torchvision", "pyarrow", "matplotlib", "lightning_fabric", "scipy")


@pytest.fixture(autouse=True)
def colour_teachers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_factory(tmp_path / "code")
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_groups(tmp_path / "images", {"a": 4, "b": 4, "c": 4, "d": 4})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, with its report; made once."""
    root = tmp_path_factory.mktemp("finished")
    write_factory(root / "code")
    write_groups(root / "images", {"a": 4, "b": 4, "c": 4, "d": 4})
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root / "code")
        command = ["distill", str(root / "images"), "--teachers", TEACHER, "--student", STUDENT]
        cli.main([*command, *SMALL, "--out", str(root / "run"), "--test", str(root / "images")])
    return root / "run"


Captured = pytest.CaptureFixture[str]


def fails(capsys: Captured, *arguments: object, progress: str = "") -> str:
    """Exit code 2 and one line of stderr, which is returned; before it at most the `progress`."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert out == ""
    if progress:
        done, err = err.split("\n", 1)
        assert done.startswith(progress)
    assert err.startswith("whiten: ")
    assert err.count("\n") == 1 and err.endswith("\n"), err
    return err


def prints(capsys: Captured, *arguments: object) -> tuple[str, str]:
    """What a command that succeeds writes to stdout and stderr."""
    capsys.readouterr()
    cli.main([str(argument) for argument in arguments])
    return capsys.readouterr()


def start(*arguments: object, code: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "whiten.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(code)},
        timeout=120,
    )


# --- a process of its own ---------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "import whiten; dir(whiten); whiten.__version__",
        "from whiten import cli; cli.main(['--help'])",
        "from whiten import cli; cli.main(['distill', '--help'])",
        "from whiten import cli; cli.main(['--version'])",
    ],
)
def test_light_commands_import_nothing_heavy(statement: str) -> None:
    program = (
        f"import sys\ntry:\n    {statement}\nexcept SystemExit as end:\n    assert not end.code\n"
        f"print('loaded', *sorted(set(sys.modules) & set({HEAVY})))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded"


def test_embed_in_a_process(images: Path, tmp_path: Path) -> None:
    (images / "a" / "broken.png").write_bytes(b"no image")
    out = tmp_path / "store"
    done = start("embed", images, "--teacher", TEACHER, "--out", out, code=tmp_path / "code")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}: 16 embeddings of 12 dimensions\n"
    assert "1 image skipped:\n  a/broken.png: not an image" in done.stderr


def test_mistakes_in_a_process(tmp_path: Path) -> None:
    done = start("embed", tmp_path / "none", "--teacher", TEACHER, "--out", "x", code=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("whiten: ") and done.stderr.count("\n") == 1
    assert "does not exist" in done.stderr


# --- mistakes ---------------------------------------------------------------------------


def test_empty_folder(capsys: Captured, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no image file" in fails(
        capsys, "embed", empty, "--teacher", TEACHER, "--out", tmp_path / "store"
    )
    assert "holds no image file" in fails(capsys, "evaluate", TEACHER, empty)


def test_no_readable_image(capsys: Captured, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    for name in ("a/0.png", "a/1.png", "b/0.png"):
        (broken / name).parent.mkdir(parents=True, exist_ok=True)
        (broken / name).write_bytes(b"no image")
    for command in (
        ("embed", broken, "--teacher", TEACHER, "--out", tmp_path / "store"),
        ("evaluate", TEACHER, broken),
    ):
        line = fails(capsys, *command, progress="embed colour_teachers:make: 3/3")
        assert "none of 3 images could be read, first 'a/0.png'" in line


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
    assert message in fails(capsys, "evaluate", uri, images)


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
        (["--precision", "16"], "precision must be 32 or bf16, not '16'"),
        (["--dtype", "int8"], "dtype must be float32 or float16, not 'int8'"),
    ],
)
def test_options_of_embed(capsys: Captured, images: Path, options: list[str], message: str) -> None:
    assert message in fails(
        capsys, "embed", images, "--teacher", TEACHER, "--out", "store", *options
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 2\n", "unknown option 'epoch'; did you mean 'epochs'?"),
        ("- 1\n", "must hold options, one `name: value` a line"),
        ("a: [\n", "cannot read c.yaml"),
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


def test_no_teachers_or_images(capsys: Captured, images: Path) -> None:
    assert "name at least one teacher" in fails(capsys, "distill", images, "--out", "run")
    assert "name the images" in fails(capsys, "distill", "--teachers", TEACHER, "--out", "run")
    assert "name at least one teacher" in fails(
        capsys, "distill", images, "--out", "run", "--dim", "8"
    )


def test_existing_run(capsys: Captured, images: Path, run: Path) -> None:
    line = fails(capsys, "distill", images, "--teachers", TEACHER, "--out", run)
    assert "is not empty" in line and "--resume" in line and "--overwrite" in line
    foreign = images / "a"
    line = fails(capsys, "distill", images, "--teachers", TEACHER, "--out", foreign, "--overwrite")
    assert "is not a run, so --overwrite will not delete it" in line
    assert len(list(foreign.iterdir())) == 4


def test_resume_needs_a_run(capsys: Captured, tmp_path: Path) -> None:
    assert "is not a run folder" in fails(capsys, "distill", "--out", "nothing", "--resume")
    assert "is not a run folder" in fails(capsys, "report", "nothing")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dim", "0"], "dim must be at least 1, not 0"),
        (["--whiten-dim", "0"], "whiten_dim must be at least 1, not 0"),
        (["--fusion", "maxmim"], "maxmin"),
        (["--batch-size", "1"], "batch_size must be at least 2"),
        (["--temperature", "0"], "temperature must be above 0"),
    ],
)
def test_options_of_distill(
    capsys: Captured, images: Path, options: list[str], message: str
) -> None:
    command = ("distill", images, "--teachers", TEACHER, "--student", STUDENT, "--out", "run")
    assert message in fails(capsys, *command, *options)
    assert not Path("run").exists()


def test_a_student_as_start_keeps_its_dim(capsys: Captured, images: Path, run: Path) -> None:
    student = f"whiten:{run / 'student'}"
    command = ("distill", images, "--teachers", TEACHER, "--student", student, "--out", "other")
    assert "use --dim 4" in fails(capsys, *command, "--dim", "16")


def test_whitening_that_does_not_fit(capsys: Captured, images: Path) -> None:
    uri = f"fuse:whitened:{TEACHER}"
    assert "add --whiten-on" in fails(capsys, "evaluate", uri, images)
    command = ("evaluate", uri, images, "--whiten-on", images)
    assert "dim" in fails(capsys, *command, "--whiten-dim", "0")
    assert "shrinkage" in fails(capsys, *command, "--shrinkage", "-1")


def test_one_group(capsys: Captured, tmp_path: Path) -> None:
    one = write_groups(tmp_path / "one", {"a": 4})
    assert "the gallery has 1 group: " in fails(capsys, "evaluate", TEACHER, one)
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


def test_search_mistakes(capsys: Captured, images: Path) -> None:
    query = images / "a" / "0.png"
    options = ("--student", TEACHER, "--in", images, "--index", "index")
    assert "k must be at least 1, not 0" in fails(capsys, "search", query, *options, "--k", "0")
    assert "cannot read gone.png" in fails(capsys, "search", "gone.png", *options)
    Path("text.png").write_text("no image")
    assert "cannot read text.png" in fails(capsys, "search", "text.png", *options)
    assert "does not exist" in fails(
        capsys, "search", query, "--student", TEACHER, "--in", "gone", "--index", "index"
    )
    assert "add --index" in fails(capsys, "search", query, "--student", TEACHER, "--in", images)
    assert not Path("index").exists()


# --- results ----------------------------------------------------------------------------


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


def test_evaluate(capsys: Captured, images: Path) -> None:
    out, _ = prints(capsys, "evaluate", TEACHER, images)
    assert out.splitlines()[0] == "colour_teachers:make: 16 queries, 16 images"
    assert "  recall@1   1.0000  [1.0000, 1.0000]" in out.splitlines()
    facts = json.loads(prints(capsys, "evaluate", TEACHER, images, "--json")[0])
    assert facts["recall@1"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    write_image(images / "lonely" / "0.png", seed=77)
    out, err = prints(capsys, "evaluate", TEACHER, images, "--embeddings", "cache")
    assert out.splitlines()[0] == "colour_teachers:make: 16 queries, 17 images"
    assert "1 queries left out" in err or "1 query left out" in err
    assert any(Path("cache").rglob("*.parquet"))


def test_evaluate_whitened_fusion(capsys: Captured, images: Path) -> None:
    uri = f"fuse:whitened:{TEACHER},{TEACHER}?seed=1"
    command = ("evaluate", uri, images, "--whiten-on", images, "--whiten-dim", "3", "--json")
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
    assert "built with another model" in line


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


def test_file_names_that_are_not_text(tmp_path: Path) -> None:
    images = write_groups(tmp_path / "images", {"a": 2})
    name = os.fsdecode(b"caf\xe9.png")
    try:
        (images / "a" / "0.png").rename(images / "a" / name)
    except OSError:
        pytest.skip("the file system takes text names only")
    command = [sys.executable, "-m", "whiten.cli", "search", str(images / "a" / name)]
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
    assert isinstance(found["advice"], list)


# --- distill ----------------------------------------------------------------------------


def saved_options(root: Path) -> dict[str, Any]:
    options: dict[str, Any] = yaml.safe_load(RunFolder(root).config.read_text())
    return options


def test_distill_and_report(capsys: Captured, run: Path) -> None:
    assert (run / "student" / "model.safetensors").is_file()
    assert (run / "report.html").is_file()
    options = saved_options(run)
    assert (options["dim"], options["epochs"], options["teachers"]) == (4, 1, [TEACHER])
    out, _ = prints(capsys, "report", run)
    assert out == f"report   {run / 'report.html'}\n"
    out, _ = prints(capsys, "report", run, "--test", run.parent / "images")
    for kind in ("teacher", "fusion-raw", "fusion-whitened", "student"):
        assert any(f"  {kind}  " in line for line in out.splitlines()), kind
    assert out.splitlines()[-1] == f"report   {run / 'report.html'}"


def test_resume_a_finished_run(capsys: Captured, run: Path) -> None:
    out, _ = prints(capsys, "distill", "--out", run, "--resume")
    assert out.splitlines()[-2] == f"student  {run / 'student'}"


def test_a_student_is_evaluated_and_searches(capsys: Captured, run: Path) -> None:
    images = run.parent / "images"
    for model in (run / "student", f"whiten:{run / 'student'}", run, f"fuse:whitened:{run}"):
        facts = json.loads(prints(capsys, "evaluate", model, images, "--json")[0])
        assert facts["queries"] == 16
    query = images / "c" / "1.png"
    out, _ = prints(capsys, "search", query, "--student", run / "student", "--in", images)
    assert out.splitlines()[0] == f"1.0000  {query}"
    [index] = (run / "index").iterdir()
    assert index.name.startswith("images-")


def test_configuration_is_used_and_flags_win(capsys: Captured, images: Path) -> None:
    config = {
        "teachers": [TEACHER, f"{TEACHER}?seed=1"],
        "student": STUDENT,
        "dim": 8,
        "whiten_dim": 3,
        "batch_size": 4,
        "epochs": 3,
        "whiten": False,
        "lr": 1e-4,
        "teachers_online": True,
        "size": None,
    }
    Path("c.yaml").write_text(yaml.safe_dump(config))
    command = ("distill", images, "--config", "c.yaml", "--out", "run")
    out, _ = prints(capsys, *command, "--epochs", "1", "--no-teachers-online", "--lr=0.002")
    assert "student  run/student" in out
    options = saved_options(Path("run"))
    won = {"epochs": 1, "teachers_online": False, "lr": 0.002}
    assert options == {**options, **config, **won}


def test_an_interrupt_is_one_line_that_says_how_to_go_on(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, images: Path
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("whiten.media.find_items", interrupted)
    with pytest.raises(SystemExit) as stop:
        cli.main(["embed", str(images), "--teacher", TEACHER, "--out", "store"])
    assert stop.value.code == 130
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "the same command goes on" in lines[0]
