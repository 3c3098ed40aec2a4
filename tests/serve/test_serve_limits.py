"""How many are answered at once, and for how long."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from service import Serve
from whiten.embedding.encoder import Encoder
from whiten.errors import ImageError
from whiten.index import Index, Match
from whiten.index.local.folder import FolderIndex
from whiten.index.query import SearchOptions
from whiten.serve.batching import Batcher, BusyError
from whiten.serve.live import LiveIndex, Search


def test_an_upload_may_have_as_many_bytes_as_on_the_command_line(serve: Serve) -> None:
    assert serve().get("/index").json()["max_upload"] == 20_000_000


# --- how many and how long ----------------------------------------------------------------


class Slow:
    """An encoder's `embed` that waits to be let go."""

    def __init__(self, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go = threading.Event()
        self.sizes: list[int] = []
        embed = encoder.embed

        def wait(images):  # type: ignore[no-untyped-def]
            self.sizes.append(len(images))
            assert self.go.wait(20)
            return embed(images)

        monkeypatch.setattr(encoder, "embed", wait)


def test_more_than_may_wait_are_told_to_come_back(
    serve: Serve, index: Index, drawing: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(index.encoder, monkeypatch)
    client = serve(waiting=3, batch=2)

    def post(_: int):  # type: ignore[no-untyped-def]
        return client.post("/search", files={"image": ("x", drawing)}, data={"k": 1})

    with ThreadPoolExecutor(12) as pool:
        answers = [pool.submit(post, number) for number in range(12)]
        while sum(answer.done() for answer in answers) < 7:  # 3 that wait, 2 in a batch
            time.sleep(0.01)
        # What needs no embedding is answered meanwhile.
        assert client.get("/search", params={"id": "a/0.png"}).status_code == 200
        assert client.get("/healthz").status_code == 200
        slow.go.set()
        done = [answer.result() for answer in answers]
    busy = [answer for answer in done if answer.status_code == 503]
    assert len(busy) == 7
    assert {answer.headers["retry-after"] for answer in busy} == {"1"}
    assert "try again" in busy[0].json()["detail"]
    rest = [answer for answer in done if answer.status_code == 200]
    assert {answer.json()["hits"][0]["id"][0] for answer in rest} == {"b"}
    assert max(slow.sizes) == 2 and sum(slow.sizes) == 5
    assert post(0).status_code == 200


def test_an_answer_that_takes_too_long(
    serve: Serve, index: Index, drawing: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(index.encoder, monkeypatch)
    client = serve(timeout=0.3)
    answer = client.post("/search", files={"image": ("x", drawing)})
    assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
    assert "no answer within 0.3 seconds" in answer.json()["detail"]
    slow.go.set()
    assert client.post("/search", files={"image": ("x", drawing)}).status_code == 200


def test_an_error_of_ours_is_an_answer_and_the_next_one_is_right(
    serve: Serve, index: Index, drawing: bytes, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    client = serve()
    with monkeypatch.context() as broken:
        broken.setattr(index.encoder, "embed", lambda images: 1 / 0)
        answer = client.post("/search", files={"image": ("x", drawing)})
    assert answer.status_code == 500
    assert answer.json() == {"detail": "an error of the service; its log has more"}
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "ZeroDivisionError" in caplog.text
    assert client.post("/search", files={"image": ("x", drawing)}).status_code == 200


def test_one_bad_image_spoils_no_batch(
    serve: Serve, index: Index, drawing: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(index.encoder, monkeypatch)
    client = serve(batch=8)
    bad = drawing[:-40]

    def post(data: bytes) -> int:
        return client.post("/search", files={"image": ("x", data)}).status_code

    with ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(post, data) for data in (drawing, drawing, bad, drawing, bad)]
        time.sleep(0.5)
        slow.go.set()
        assert [answer.result() for answer in answers] == [200, 200, 415, 200, 415]
    assert max(slow.sizes) > 1


# --- batches and the index ------------------------------------------------------------------


def test_a_batcher_answers_in_order_and_together() -> None:
    go, calls = threading.Event(), []

    def double(numbers: Sequence[int]) -> list[int | Exception]:
        calls.append(list(numbers))
        assert go.wait(10)
        return [ImageError("three") if n == 3 else 2 * n for n in numbers]

    async def ask() -> list[int | BaseException]:
        batcher: Batcher[int, int] = Batcher("test", double, batch=4, waiting=6)
        asked = [asyncio.ensure_future(batcher.ask(0))]
        await asyncio.sleep(0.1)  # is being answered, so that the others wait
        asked += [asyncio.ensure_future(batcher.ask(n)) for n in range(1, 7)]
        await asyncio.sleep(0.1)
        with pytest.raises(BusyError):
            await batcher.ask(9)
        asked[2].cancel()
        await asyncio.sleep(0.01)
        go.set()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        batcher.close()
        return answers

    answers = asyncio.run(ask())
    assert isinstance(answers[2], asyncio.CancelledError)
    assert isinstance(answers[3], ImageError)
    assert [answers[n] for n in (0, 1, 4, 5, 6)] == [0, 2, 8, 10, 12]
    assert calls == [[0], [1, 3, 4], [5, 6]]


def test_a_batcher_survives_what_it_calls() -> None:
    def fail(numbers: Sequence[int]) -> list[int | Exception]:
        if 0 in numbers:
            raise MemoryError("none left")
        return list(numbers)

    async def ask() -> int:
        batcher: Batcher[int, int] = Batcher("test", fail, batch=4, waiting=6)
        with pytest.raises(MemoryError):
            await batcher.ask(0)
        answer = await batcher.ask(5)
        batcher.close()
        return answer

    assert asyncio.run(ask()) == 5


def test_searches_together_are_searches_alone(index: Index) -> None:
    live = LiveIndex(index)
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((6, 12)).astype(np.float32)
    wheres = [None, "group == 'a'", "group == 'a'", None, "price < 99999999999999999999999", None]
    asked = [
        Search(vector[None], SearchOptions(k, where=live.read_where(where or "")))
        for vector, k, where in zip(vectors, (1, 2, 5, 12, 3, 3), wheres, strict=True)
    ]
    together = live.search(asked)
    for number in range(6):
        [alone] = index.search_vectors(
            vectors[number : number + 1], asked[number].options.k, where=wheres[number]
        )
        found = together[number]
        assert isinstance(found, list)
        assert [match.id for match in found] == [match.id for match in alone]


def test_images_are_read_while_others_are_searched(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, searching, read = LiveIndex(index), threading.Event(), threading.Event()
    find = FolderIndex.search

    def slow(folder: FolderIndex, *arguments: Any) -> list[list[Match]]:
        searching.set()
        assert read.wait(60)
        return find(folder, *arguments)

    monkeypatch.setattr(FolderIndex, "search", slow)
    [name] = index.ids()[:1]
    vector, _ = live.vector(name)
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(live.search, [Search(vector[None], SearchOptions(1))])
        assert searching.wait(60)
        assert live.item(name).id == name
        assert live.listing(0, 1)[0] == len(live) == len(index)
        read.set()
        [hits] = found.result()
    assert isinstance(hits, list)
    assert [hit.id for hit in hits] == [name]
