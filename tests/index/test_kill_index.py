"""SIGKILL while an index is built or changed: it opens every time, in the old state or the new."""

from __future__ import annotations

import random
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from helpers import TEACHER, write_factory, write_groups
from killing import Work, attempt
from warm import start_server
from whiten.index.local.codes import can_multiply
from whiten.index.local.folder import FolderIndex
from whiten.retrieval.exact import exact_search
from whiten.utils.arrays import normalize_rows

KILLS = 50
OLD, NEW = "abcdef", "gh"  # groups of four images each
GONE = [f"{group}/{n}.png" for group in "ab" for n in range(4)]

State = dict[str, bytes] | None  # vectors by id; None is no index


def prepare(folder: Path) -> Path:
    """Let small indexes do all that large ones do; the folder that holds the images."""
    from whiten.index import synchronise
    from whiten.index.local import folder as backend
    from whiten.index.local import tuning

    sys.path.insert(0, str(folder.parent))  # where the teachers are
    synchronise.CHUNK = 5
    backend._MOST_SEGMENTS = 1
    tuning.FEW_BYTES = 0
    tuning._Trial.seconds = lambda *_: (1.0, 0.1)  # type: ignore[method-assign]
    return folder.parent


def build_exact(folder: Path) -> None:
    from whiten.index import Index

    Index.build(TEACHER, prepare(folder) / "old", folder, kind="exact")


def build_lists(folder: Path) -> None:
    from whiten.index import Index

    Index.build(TEACHER, prepare(folder) / "old", folder, kind="ivf")


def build_codes(folder: Path) -> None:
    from whiten.index import Index

    Index.build(TEACHER, prepare(folder) / "old", folder, kind="int8")


def build_stored(folder: Path) -> None:
    from whiten.index import Index

    Index.build(TEACHER, prepare(folder) / "old", folder, storage="int8")


def add(folder: Path) -> None:
    from whiten.index import Index

    images = prepare(folder) / "new"
    Index.open(folder).add(images)


def remove(folder: Path) -> None:
    from whiten.index import Index

    prepare(folder)
    index = Index.open(folder)
    index.remove([name for name in GONE if name in set(index.ids())])


def state_of(folder: Path) -> State:
    """What an index holds, after a look whether its parts fit."""
    index = FolderIndex(folder)
    if index.facts is None:
        return None
    ids = [name for page in index.pages(7) for name in page["id"].to_pylist()]
    assert len(ids) == len(set(ids)) == len(index)
    if not ids:
        return {}
    found = index.fetch(ids)
    assert found.rows["id"].to_pylist() == ids
    expected = exact_search(found.vectors, normalize_rows(found.vectors), 1)
    for answers, (_, scores) in zip(index.search(found.vectors, 1), expected, strict=True):
        np.testing.assert_allclose([match.score for match in answers], scores, atol=1e-6)
    return {name: vector.tobytes() for name, vector in zip(ids, found.vectors, strict=True)}


BUILDS: dict[str, Work] = {
    "exact": build_exact,
    "ivf": build_lists,
    "int8": build_codes,
    "stored": build_stored,
}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("workshop")
    write_factory(root)
    write_groups(root / "old", dict.fromkeys(OLD, 4))
    write_groups(root / "made", dict.fromkeys(OLD + NEW, 4))
    for group in NEW:
        shutil.move(root / "made" / group, root / "new" / group)
    start_server()
    return root


def interrupt(
    work: Work, folder: Path, before: Callable[[], object], *, at: str, between: State = None
) -> tuple[State, State, set[str]]:
    """Kill the work many times, each time from the same beginning.

    Args:
        before: puts the folder into the old state.
        at: `time`, a random moment; or `change`, before each change of a file in turn.
        between: a state between the two that may be seen, too.

    Returns:
        The old and the new state, and which of the two were seen after a kill.
    """
    before()
    old = state_of(folder)
    attempt(work, folder)  # fills the caches
    before()
    began = time.monotonic()
    assert attempt(work, folder)
    seconds = time.monotonic() - began
    new = state_of(folder)
    draw, seen, killed, event = random.Random(0), set(), 0, 0
    while killed < KILLS:
        before()
        event += 1
        if at == "time":
            done = attempt(work, folder, seconds=draw.uniform(0, seconds))
        else:
            done = attempt(work, folder, event=event)
        state = state_of(folder)
        assert state in (old, new) or (state is not None and state == between)
        assert not done or state == new
        if done and at == "change":
            break  # there is no such change any more
        if not done:
            killed += 1
            seen.add("old" if state == old else "new" if state == new else "between")
            if killed % 5 == 0:  # it goes on from there
                assert attempt(work, folder)
                assert state_of(folder) == new
                assert not list(folder.glob(".staged-*"))
    assert killed >= (KILLS if at == "time" else 8)
    return old, new, seen


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "at"), [("ivf", "time"), ("ivf", "change"), ("int8", "change"), ("exact", "change")]
)
def test_a_killed_build(workshop: Path, kind: str, at: str) -> None:
    folder = workshop / f"build-{kind}-{at}"
    before = lambda: shutil.rmtree(folder, ignore_errors=True)  # noqa: E731
    old, new, seen = interrupt(BUILDS[kind], folder, before, at=at)
    assert old is None and new is not None
    assert sorted(new) == [f"{group}/{n}.png" for group in OLD for n in range(4)]
    assert at == "time" or seen == {"old", "new"}
    index = FolderIndex(folder)
    assert index.tuning is None or index.tuning.kind in (kind, "exact")


@pytest.mark.slow
def test_a_killed_build_in_fewer_bytes(workshop: Path) -> None:
    """Its vectors are there as float32 before they are encoded."""
    folder, plain = workshop / "build-stored", workshop / "plain"
    assert attempt(build_exact, plain)
    before = lambda: shutil.rmtree(folder, ignore_errors=True)  # noqa: E731
    work = interrupt(build_stored, folder, before, at="change", between=state_of(plain))
    assert work[0] is None and work[1] is not None
    assert work[2] == {"old", "between", "new"}
    assert FolderIndex(folder).storage.name == "int8" and not list(folder.glob("*/vectors.f32"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "at"),
    [("ivf", "time"), ("ivf", "change"), ("int8", "change"), ("stored", "change")],
)
@pytest.mark.parametrize("work", [add, remove])
def test_a_killed_change(workshop: Path, work: Work, kind: str, at: str) -> None:
    if kind == "int8" and not can_multiply():
        pytest.skip("torch multiplies no int8 matrices here")
    base = workshop / f"base-{kind}"
    if not base.exists():
        assert attempt(BUILDS[kind], base)
    folder = workshop / f"{work.__name__}-{kind}-{at}"

    def before() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(base, folder)

    old, new, seen = interrupt(work, folder, before, at=at)
    assert old is not None and new is not None
    if work is add:
        assert new.keys() - old.keys() == {f"{group}/{n}.png" for group in NEW for n in range(4)}
        assert old.items() <= new.items()
    else:
        assert old.keys() - new.keys() == set(GONE)
        assert new.items() <= old.items()
    assert at == "time" or seen == {"old", "new"}
