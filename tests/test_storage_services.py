"""Storage services before and beside S3: credentials, extras, retries of libraries, plain HTTP."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable
from functools import partial, wraps
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from helpers import forget_objects
from shard_makers import samples, write_tar, write_tars
from whiten.datasets.finding import find_items
from whiten.errors import ChangedError, ConfigError, ImageError, MissingExtraError, StorageError
from whiten.media.reading import read_bytes
from whiten.storage import objects, retrying, services


@pytest.mark.parametrize(
    "url",
    [
        "http://user:word@host/a.tar",
        "https://host/a.tar?X-Amz-Signature=0123&X-Amz-Date=1",
        "https://host/a.png?sv=2020&sig=0123",
        "s3://key:word@photos/a",
    ],
)
def test_credentials_in_urls_are_refused_and_not_shown(url: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"path\n{url}\n")
    for source in (url, tmp_path / "a.csv"):
        with pytest.raises(ConfigError, match="holds a credential") as caught:
            find_items(source)
        assert "word" not in str(caught.value) and "0123" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "module", "extra"),
    [
        ("s3://a/b", "s3fs", "s3"),
        ("gs://a/b", "gcsfs", "gcs"),
        ("az://a/b", "adlfs", "azure"),
        ("https://a/b.tar", "aiohttp", "http"),
    ],
)
def test_a_missing_extra_is_one_line(
    url: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    services.filesystem.cache_clear()
    with pytest.raises(MissingExtraError, match=rf"pip install 'whiten\[{extra}\]'"):
        find_items(url)
    services.filesystem.cache_clear()


class Azure:
    """Stands for adlfs, which opens no account without credentials."""

    def __init__(self, **_: object) -> None:
        raise ValueError("unable to connect with AccountKey=hidden")


def test_a_service_that_cannot_be_opened_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "adlfs", ModuleType("adlfs"))
    monkeypatch.setattr("fsspec.filesystem", lambda _, **options: Azure(**options))
    services.filesystem.cache_clear()
    for _ in range(2):
        with pytest.raises(StorageError, match=r"az://.*credentials") as caught:
            find_items("az://photos/a")
        assert "hidden" not in str(caught.value)
    services.filesystem.cache_clear()


def test_libraries_do_not_ask_again_themselves() -> None:
    """Their pauses would add up to minutes, beside ours."""
    policy = SimpleNamespace(total_retries=3)
    azure = SimpleNamespace(service_client=SimpleNamespace(_config=SimpleNamespace()))
    azure.service_client._config.retry_policy = policy
    services._ask_once(azure)
    assert policy.total_retries == 0

    def six_times(request: Callable[..., str]) -> Callable[..., str]:
        @wraps(request)
        def asked(*arguments: object) -> str:
            return request(*arguments) * 6

        return asked

    class Google:
        @six_times
        def _request(self, word: str) -> str:
            return word

    google = Google()
    services._ask_once(google)
    assert google._request("asked ") == "asked "
    services._ask_once(object())


def test_an_http_server_that_fails_is_not_one_that_lacks_the_object(
    shared_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrying, "FIRST_PAUSE", 0.001)
    faults = iter([500, 500, 503, 503] + [0] * 20)

    class Failing(SimpleHTTPRequestHandler):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given, directory=str(shared_images))

        def log_message(self, *_: Any) -> None:
            pass

        def send_head(self) -> Any:
            if not (fault := next(faults)):
                return super().send_head()
            self.send_error(fault)
            return None

    services.filesystem.cache_clear()
    forget_objects()
    with ThreadingHTTPServer(("127.0.0.1", 0), Failing) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{web.server_address[1]}/a"
        assert read_bytes(f"{url}/0.png") == (shared_images / "a" / "0.png").read_bytes()
        with pytest.raises(ImageError, match="no such object"):
            read_bytes(f"{url}/none.png")
        faults = itertools.repeat(500)
        with pytest.raises(StorageError, match=r"a/1\.png: error 500, 6 times"):
            read_bytes(f"{url}/1.png")
        web.shutdown()
    with pytest.raises(StorageError, match=r"a/1\.png: no answer \(\w*Conn\w+\), 6 times"):
        read_bytes(f"{url}/1.png")


def test_tars_over_http_from_a_server_without_ranges(
    shared_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tars(tmp_path / "shards", samples(shared_images))
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    monkeypatch.setattr(retrying, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(objects, "_BLOCK", 4096)
    services.filesystem.cache_clear()
    forget_objects()
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{web.server_address[1]}/shards/photos-{{000..002}}.tar"
        items = find_items(url)
        found = sorted(read_bytes(item.path) for item in items)
        objects._blocks.forget(lambda key: True)
        write_tar(tmp_path / "shards" / "photos-000.tar", [("000000000.png", b"x" * 90_000)])
        with pytest.raises(ChangedError, match=r"photos-000\.tar has changed"):
            read_bytes(items[0].path)
        web.shutdown()
    assert found == sorted(data for _, data, _ in samples(shared_images))
