"""Several processes answer as one service."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import pytest

from command_line import fails
from helpers import draw
from pictures import encode
from service import Service
from whiten.errors import ConfigError
from whiten.index import Index
from whiten.serve import Settings, workers
from whiten.serve.running import listen
from whiten.utils import steady

TOKEN = "rose-17"
KNOWN = {"Authorization": f"Bearer {TOKEN}"}


def children(process: int) -> list[int]:
    """The workers, without Python's own helper process."""
    found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    commands = {int(one): Path(f"/proc/{one}/cmdline").read_text() for one in found}
    return [one for one, command in commands.items() if "spawn_main" in command]


def add(url: str, name: str, seed: int) -> int:
    files = {"image": ("x", encode(draw(seed)))}
    data = {"id": name}
    answer = httpx.post(url + "items", files=files, data=data, headers=KNOWN, timeout=60)
    return answer.status_code


@pytest.mark.slow
def test_workers_share_an_index_that_they_write(index: Index, tmp_path: Path) -> None:
    options = ("--workers", 2, "--writable")
    with Service(Path(index.place), *options, code=tmp_path / "code", token=TOKEN) as service:

        def get(path: str) -> httpx.Response:
            return httpx.get(service.url + path, headers=KNOWN, timeout=30)

        def add_and_look(number: int) -> int:
            status = add(service.url, f"n{number}", 200 + number)
            assert get(f"items/n{number}").status_code == 200  # by any worker, at once
            return status

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(add_and_look, range(12))) == [201] * 12
            assert {answer.json()["total"] for answer in pool.map(get, ["items"] * 12)} == {24}
            # One id for several images at once: only the first is stored, in whichever worker.
            same = [pool.submit(add, service.url, "one", 300 + n) for n in range(4)]
            assert sorted(one.result() for one in same) == [201, 409, 409, 409]

        first, second = children(service.process.pid)
        os.kill(first, signal.SIGKILL)
        for _ in range(600):
            alive = children(service.process.pid)
            if len(alive) == 2 and first not in alive:
                break
            time.sleep(0.1)
        assert second in alive
        for _ in range(8):
            assert get("items").json()["total"] == 25
        assert service.end() == 0
        assert service.lines == [
            f"serving 12 images on {service.url}",
            "whiten: warning: a worker died (-9), starting another",
            "stopped",
        ]


@pytest.mark.slow
def test_workers_end_with_a_service_that_is_killed(index: Index, tmp_path: Path) -> None:
    with Service(Path(index.place), "--workers", 2, code=tmp_path / "code") as service:
        started = children(service.process.pid)
        service.process.kill()
        for _ in range(300):
            if not any(Path(f"/proc/{one}/cmdline").exists() for one in started):
                break
            time.sleep(0.1)
        assert len(started) == 2
        assert not any(Path(f"/proc/{one}/cmdline").exists() for one in started)


def test_mistakes(index: Index, capsys: pytest.CaptureFixture[str], place: str) -> None:
    line = fails(capsys, "serve", index.place, "--port", "0", "--workers", "0")
    assert "workers must be at least 1, not 0" in line
    if ":" in place:
        Index.build(index.encoder, index.facts.sources[0], place)
        job = workers.Job(place, None, None, Settings(writable=True, token=TOKEN))
        with listen("127.0.0.1", 0) as listening, pytest.raises(ConfigError, match="a database"):
            workers.serve_with(2, job, listening, lambda _: None, print)


def test_workers_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steady, "cores", lambda: 8)
    monkeypatch.setattr(steady, "_set", {"OMP_NUM_THREADS": "8"})
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    steady.share(3)
    assert os.environ["OMP_NUM_THREADS"] == "2"
    monkeypatch.setattr(steady, "_set", {})  # the user's own
    steady.share(8)
    assert os.environ["OMP_NUM_THREADS"] == "2"
