"""How many threads compute, and how they wait: set before they start, and told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from whiten.utils import steady, threads
from whiten.utils.steady import be_steady
from whiten.utils.threads import cores, quota


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "100000 100000\n"}, 1.0),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, 1.5),
        ("0::/host/path\n", {"cpu.max": "50000 100000"}, 0.5),  # in a container
        (
            "4:memory:/m\n2:cpu,cpuacct:/c\n",
            {"cpu,cpuacct/c/cpu.cfs_quota_us": "200000", "cpu,cpuacct/c/cpu.cfs_period_us": "1000"},
            200.0,
        ),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("0::/\n", {"cpu.max": "nonsense"}, None),
        ("", {}, None),
    ],
)
def test_the_quota_of_a_control_group(
    tmp_path: Path, groups: str, files: dict[str, str], expected: float | None
) -> None:
    write(tmp_path, {"groups": groups})
    assert quota(tmp_path / "groups", write(tmp_path / "root", files)) == expected


def test_without_control_groups(tmp_path: Path) -> None:
    assert quota(tmp_path / "none", tmp_path) is None


@pytest.mark.parametrize(("limit", "expected"), [(None, 4), (0.5, 1), (1.0, 1), (2.5, 3), (64, 4)])
def test_cores_are_those_that_may_be_used(
    monkeypatch: pytest.MonkeyPatch, limit: float | None, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    monkeypatch.setattr(threads, "quota", lambda: limit)
    assert cores() == expected


def test_what_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steady, "cores", lambda: 3)
    monkeypatch.setattr(steady, "_set", {})
    environment: dict[str, str] = {}
    be_steady(environment)
    assert environment == {
        "OMP_NUM_THREADS": "3",
        "OMP_WAIT_POLICY": "PASSIVE",
        "KMP_BLOCKTIME": "0",
        "OPENBLAS_THREAD_TIMEOUT": "16",
    }


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steady, "_set", {})
    environment = {"MKL_NUM_THREADS": "7", "OMP_WAIT_POLICY": "ACTIVE"}
    be_steady(environment)
    assert environment["OMP_WAIT_POLICY"] == "ACTIVE"
    assert environment["MKL_NUM_THREADS"] == "7" and "OMP_NUM_THREADS" not in environment


@pytest.mark.slow
def test_torch_and_doctor_follow_the_affinity() -> None:
    """On one core of several one thread computes, and `doctor` says why."""
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system has no affinity")
    unset = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    program = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from whiten import cli; cli.main(['doctor', '--json'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**environment, "PYTHONPATH": os.pathsep.join(sys.path), "KMP_BLOCKTIME": "5"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    facts = found.get("facts", found)
    assert (facts["cores"], facts["torch threads"]) == ("1", "1")
    assert facts["OMP_NUM_THREADS"].startswith("1 (one thread per core, ")
    assert facts["OMP_WAIT_POLICY"] == "PASSIVE (threads of torch sleep while they wait)"
    assert facts["KMP_BLOCKTIME"] == "5 (as your environment has it)"
