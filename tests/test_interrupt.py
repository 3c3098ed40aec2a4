"""Ctrl-C and `kill` on real processes: they end soon, in one line, and say how to go on.

The exit code is that of shells: 128 and the signal's number.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from helpers import write_groups
from small_runs import STUDENT
from whiten.runs.folder import RunFolder
from whiten.store.store import Store

pytestmark = pytest.mark.slow

SOON = 20.0  # seconds; a second on an idle machine
# Takes its time, and says when it has begun.
FACTORY = """
import os, time
from pathlib import Path
from torch import nn
from whiten.views.rendering import Preprocess

class Slow(nn.Module):
    def forward(self, images):
        Path("begun").touch()
        time.sleep(float(os.environ.get("SECONDS_A_BATCH", "0")))
        return images.mean((2, 3)) + 1

def make():
    return Slow(), Preprocess(size=(32, 32))
"""
TEACHER = "python:slow_teachers:make"
TRAIN = ["--student", STUDENT, "--dim", "4", "--batch-size", "4", "--checkpoint-every", "1"]


@pytest.fixture(autouse=True)
def work_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_teachers.py").write_text(FACTORY)
    write_groups(tmp_path / "images", dict.fromkeys("abcdefgh", 6))
    monkeypatch.chdir(tmp_path)


# Background jobs ignore SIGINT, those of nohup SIGHUP, and so do the processes that they start. Not
# a `preexec_fn`, for which Python forks a process that may have threads of earlier tests.
AS_IN_A_TERMINAL = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])
"""


def start(*arguments: str, under: Sequence[str] = (), **environment: str) -> subprocess.Popen[str]:
    command = [*under, sys.executable, "-m", "whiten", *arguments]
    return subprocess.Popen(
        [sys.executable, "-c", AS_IN_A_TERMINAL, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        start_new_session=True,
    )


def wait_for(event: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + 120
    while not event():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit, "it never began"
        time.sleep(0.01)


def interrupted(
    process: subprocess.Popen[str], number: int = signal.SIGINT, *, group: bool = False
) -> str:
    """Interrupt it; the line that it ends with."""
    (os.killpg if group else os.kill)(process.pid, number)
    try:
        out, err = process.communicate(timeout=SOON)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"still running after {SOON} s: {process.communicate()}")
    assert process.returncode == 128 + number, err
    assert out == ""
    assert "Traceback" not in err
    said = [line for line in err.splitlines() if line.startswith("whiten: ")]
    [line] = [line for line in said if not line.startswith("whiten: warning: ")]
    assert line.startswith("whiten: interrupted: ") and err.endswith(f"{line}\n")
    return line


def go_on(*arguments: str) -> str:
    process = start(*arguments)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out


def test_embed() -> None:
    command = ("embed", "images", "--teacher", TEACHER, "--out", "store")
    process = start(*command, SECONDS_A_BATCH="30")
    wait_for(Path("begun").exists, process)
    assert "the same command continues" in interrupted(process)
    assert go_on(*command) == "store: 48 embeddings of 3 dimensions\n"
    assert len(Store.open("store")) == 48


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_evaluate(name: str) -> None:
    Path("scratch").mkdir()
    command = ("evaluate", "images", "--model", TEACHER)
    process = start(*command, SECONDS_A_BATCH="30", TMPDIR="scratch")
    wait_for(Path("begun").exists, process)
    line = interrupted(process, getattr(signal, name))
    assert "run the same command again" in line
    assert "is kept" not in line  # there is no cache to keep anything in
    assert not list(Path("scratch").glob("whiten-*"))


def test_a_closed_terminal_does_not_end_what_nohup_protects() -> None:
    command = ("evaluate", "images", "--model", TEACHER)
    process = start(*command, SECONDS_A_BATCH="2", under=["nohup"])
    wait_for(Path("begun").exists, process)
    os.kill(process.pid, signal.SIGHUP)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err


def test_evaluate_with_a_cache() -> None:
    command = ("evaluate", "images", "--model", TEACHER, "--embeddings", "cache")
    process = start(*command, SECONDS_A_BATCH="30")
    wait_for(Path("begun").exists, process)
    assert "finished work is kept, the same command continues" in interrupted(process)


def begun_training(*options: str) -> subprocess.Popen[str]:
    command = ["distill", "images", "--teachers", TEACHER, "--out", "my run", *TRAIN, *options]
    process = start(*command)
    wait_for(lambda: len(RunFolder(Path("my run")).read_metrics()) > 2, process)
    return process


def test_distill_while_it_embeds() -> None:
    command = ("distill", "images", "--teachers", TEACHER, "--out", "my run", *TRAIN)
    process = start(*command, "--epochs", "1", SECONDS_A_BATCH="30")
    wait_for(Path("begun").exists, process)
    line = interrupted(process)
    [said] = re.findall(r"whiten (distill .*) continues$", line)
    assert shlex.split(said) == ["distill", "--out", "my run", "--resume"]
    assert "student  my run/student" in go_on(*shlex.split(said))


def test_distill_while_it_trains() -> None:
    line = interrupted(begun_training("--epochs", "200"))
    [said] = re.findall(r"whiten (distill .*) continues$", line)
    run = RunFolder(Path("my run"))
    steps = int(run.load_checkpoint()["step"])
    assert steps > 1
    process = start(*shlex.split(said))
    wait_for(lambda: len(run.read_metrics()) > steps + 2, process)
    interrupted(process)


@pytest.mark.parametrize("group", [True, False], ids=["as a terminal does", "as kill does"])
def test_distill_on_two_devices(group: bool) -> None:
    process = begun_training("--epochs", "2000", "--devices", "2", "--device", "cpu")
    interrupted(process, group=group)
    assert RunFolder(Path("my run")).load_checkpoint()["step"] > 1


# In a process of its own: a library that another test loaded may end the process at the signal.
SWALLOWING = """
import os, time
try:
    os.kill(os.getpid(), {number})
    time.sleep(0.2)
except BaseException:
    pass
print("finished", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_no_import_swallows_an_interrupt(number: signal.Signals) -> None:
    Path("swallowing.py").write_text(SWALLOWING.format(number=int(number)))
    code = (
        "import time\n"
        "from whiten.cli.terminal import one_line_endings\n"
        "with one_line_endings(['embed', 'images']):\n"
        f"    import swallowing\n    time.sleep({SOON})\n"
    )
    command = [sys.executable, "-c", AS_IN_A_TERMINAL, sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (128 + number, "finished\n"), done.stderr
    assert done.stderr.startswith("whiten: interrupted: ")


def test_before_the_command_line_is_imported() -> None:
    code = (
        "import sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'whiten.cli':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "from whiten.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 130
    assert done.stderr == "whiten: interrupted: run the same command again\n"
