"""The command line in processes of its own: what is imported, exit codes, pipes."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import start
from helpers import TEACHER

HEAVY = ("torch", "timm", "torchvision", "pyarrow", "matplotlib", "lightning_fabric", "scipy")


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


@pytest.mark.slow
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


# --- pipes ------------------------------------------------------------------------------


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """A line of bash, in which `whiten` is this one."""
    whiten = f"{shlex.quote(sys.executable)} -m whiten"
    return subprocess.run(
        ["bash", "-c", f'whiten() {{ {whiten} "$@"; }}; {line}'],
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
@pytest.mark.parametrize("command", ["whiten teachers timm", "whiten teachers --json"])
def test_a_reader_that_has_enough(command: str) -> None:
    """As of any tool that SIGPIPE ends: no word, and a code that only the shell sees."""
    done = shell(f"{command} 2> >(cat >&2) | head -c 1; echo ${{PIPESTATUS[0]}}")
    assert done.returncode == 0
    assert done.stderr == "" or done.stderr.startswith("other models: ")
    assert int(done.stdout[1:]) in (0, 141)


@pytest.mark.slow
def test_a_reader_that_never_reads() -> None:
    done = shell("whiten doctor --json | true; echo ${PIPESTATUS[0]}")
    assert (done.stdout, done.stderr) in (("141\n", ""), ("0\n", ""))


@pytest.mark.slow
def test_a_closed_stdout() -> None:
    done = shell("whiten doctor --json >&-; echo $?")
    assert (done.stdout, done.stderr) == ("0\n", "")


@pytest.mark.slow
def test_a_full_device() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    done = shell("whiten doctor --json > /dev/full; echo $?")
    assert done.stdout == "2\n"
    assert done.stderr.startswith("whiten: No space left on device")
    assert done.stderr.count("\n") == 1
