"""`whiten serve` as it is started and ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx2 as httpx
import pytest

from command_line import fails
from service import Service
from whiten.errors import ConfigError, MissingExtraError
from whiten.index import Index
from whiten.serve import running

Captured = pytest.CaptureFixture[str]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_from_start_to_end(index: Index, drawing: bytes, tmp_path: Path, number: int) -> None:
    with Service(Path(index.place), code=tmp_path / "code") as service:
        with httpx.Client(base_url=service.url) as client:
            answer = client.post("search", files={"image": ("x", drawing)}, data={"k": 2})
            assert [hit["id"][0] for hit in answer.json()["hits"]] == ["b", "b"]
            assert "server" not in answer.headers
            assert client.get("", headers={"Host": "evil.example"}).status_code == 421
        assert service.end(number) == 0
        assert service.lines == [f"serving 12 images on {service.url}", "stopped"]
    with pytest.raises(httpx.ConnectError):
        httpx.get(service.url)


@pytest.mark.slow
def test_what_was_asked_before_the_end_is_answered(
    index: Index, drawing: bytes, tmp_path: Path
) -> None:
    with Service(Path(index.place), code=tmp_path / "code") as service:
        statuses: list[int] = []
        lost: list[bool] = []
        ending = threading.Event()

        def ask() -> None:
            with httpx.Client(base_url=service.url, timeout=20) as client:
                for _ in range(1000):
                    try:
                        answer = client.post("search", files={"image": ("x", drawing)})
                    except httpx.TransportError:  # nobody there, or a kept connection was closed
                        lost.append(ending.is_set())
                        return
                    statuses.append(answer.status_code)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        while len(statuses) < 20:
            time.sleep(0.01)
        ending.set()
        assert service.end(signal.SIGINT) == 0
        for thread in threads:
            thread.join(30)
        assert lost == [True] * 4
        assert set(statuses) <= {200, 503} and statuses.count(200) >= 20
        assert service.lines[-1] == "stopped" and len(service.lines) == 2


@pytest.mark.slow
def test_a_token_and_raw_sockets(index: Index, tmp_path: Path) -> None:
    """What no client library would send is answered or cut off, and the service goes on."""
    with Service(Path(index.place), code=tmp_path / "code", token="rose-17") as service:
        assert httpx.get(service.url + "items").status_code == 401
        known = {"Authorization": "Bearer rose-17"}
        port = int(service.url.rsplit(":", 1)[1].strip("/"))
        start = b"POST /search HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer rose-17\r\n"
        for sent in (
            b"GET /" + b"x" * 200_000 + b" HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 200_000 + b"\r\n\r\n",
            b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20_000 + b"\r\n",
            b"\x00\xff\xfe\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"GET ../../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"GET http://evil.example/items HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"GET / HTTP/1.1\r\n\r\n",  # without a Host
            start + b"Content-Length: -5\r\n\r\n",
            start + b"Content-Length: 99999999999999999999\r\n\r\n",
            start + b"Content-Length: 10\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            start + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
        ):
            with socket.create_connection(("127.0.0.1", port), 5) as raw:
                try:
                    raw.sendall(sent)
                    raw.shutdown(socket.SHUT_WR)
                    answer = raw.recv(1 << 16)
                except OSError as error:  # it was cut off, sooner or later
                    assert not isinstance(error, TimeoutError)
                    continue
                assert answer == b"" or b" 4" in answer[:12] or b"/passwd" in sent, answer[:80]
        assert httpx.get(service.url + "items", headers=known).json()["total"] == 12
        assert service.end() == 0
        assert len(service.lines) == 2, "\n".join(service.lines)


@pytest.mark.slow
def test_an_upload_that_never_ends(index: Index, tmp_path: Path) -> None:
    with Service(Path(index.place), "--timeout", 0.5, code=tmp_path / "code") as service:
        port = int(service.url.rsplit(":", 1)[1].strip("/"))
        with socket.create_connection(("127.0.0.1", port), 20) as raw:
            raw.sendall(b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n")
            raw.sendall(b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b")
            assert raw.recv(1 << 16).startswith(b"HTTP/1.1 408 ")
        for head in (b"", b"GET / HTTP/1.1\r\nHo", b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\nGET"):
            with socket.create_connection(("127.0.0.1", port), 20) as raw:
                raw.sendall(head)
                while raw.recv(1 << 16):  # until it is closed: an answer, or nothing
                    pass
        assert httpx.get(service.url + "healthz").status_code == 200


def test_a_port_that_is_taken(index: Index, capsys: Captured) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = fails(capsys, "serve", index.place, "--port", port)
    assert f"cannot listen on 127.0.0.1 port {port} (" in line and "--port" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port", "70000"], "port 70000 does not exist"),
        (["--host", "no such host", "--port", "0"], "cannot listen on no such host"),
        (["--root", "/none"], "/none is not a folder"),
        (["--token-file", "/none"], "cannot read the token in /none"),
        (["--port", "0", "--max-upload", "0"], "max_upload must be above 0"),
        (["--port", "0", "--max-upload", "nan"], "max_upload must be a number above 0, not nan"),
        (["--port", "0", "--max-pixels", "inf"], "max_pixels must be a number above 0, not inf"),
        (["--port", "0", "--timeout", "-1"], "timeout must be above 0"),
    ],
)
def test_mistakes(index: Index, capsys: Captured, options: list[str], message: str) -> None:
    assert message in fails(capsys, "serve", index.place, *options)


def test_no_index(colour_teachers: None, tmp_path: Path, capsys: Captured) -> None:
    assert "is not an index" in fails(capsys, "serve", tmp_path / "none", "--port", "0")


def test_an_empty_token_is_refused(
    index: Index, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who sets it means to be asked for one."""
    monkeypatch.setenv("WHITEN_TOKEN", "")
    assert "the token must be" in fails(capsys, "serve", index.place, "--port", "0")


@pytest.mark.slow
def test_open_to_others_without_a_token_is_warned_of(index: Index, tmp_path: Path) -> None:
    place = Path(index.place)
    with Service(place, "--host", "0.0.0.0", code=tmp_path / "code") as service:
        assert service.url.startswith("http://127.0.0.1:")
        assert httpx.get(service.url + "healthz").status_code == 200
        assert service.lines[0].startswith("whiten: warning: everyone who reaches this port")
        service.end()
        assert len(service.lines) == 3
    with Service(place, "--host", "0.0.0.0", code=tmp_path / "code", token="rose") as service:
        service.end()
        assert len(service.lines) == 2


def test_addresses() -> None:
    with running.listen("127.0.0.1", 0) as listening:
        assert running.is_loopback(listening)
        assert running.url_of(listening).startswith("http://127.0.0.1:")
    with running.listen("0.0.0.0", 0) as listening:
        assert not running.is_loopback(listening)
    if socket.has_ipv6:
        try:
            listening = running.listen("::1", 0)
        except ConfigError:
            pytest.skip("this machine has no IPv6")
        with listening:
            assert running.is_loopback(listening)
            assert running.url_of(listening).startswith("http://[::1]:")


def test_without_the_extra(index: Index) -> None:
    program = (
        "import sys; sys.modules['fastapi'] = None\n"
        "from whiten import cli\n"
        f"cli.main(['serve', {index.place!r}])"
    )
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=path)
    assert done.returncode == 2
    assert done.stderr == f"whiten: {MissingExtraError('serving an index', 'serve')}\n"
