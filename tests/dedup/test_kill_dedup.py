"""SIGKILL while near-duplicates are found or codes are written: the same results in the end."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from helpers import write_groups
from killing import Reference, kill_again_and_again
from warm import start_server
from whiten.index.local.folder import FolderIndex

KILLS = 12
STUDENT = "timm:test_efficientnet?pretrained=0&size=32"


def images_of(folder: Path) -> Path:
    """Beside the folder of the work, shared by all attempts at it."""
    return folder.parent / "images"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    start_server()
    root = write_groups(images_of(tmp_path / "work"), {"a": 8, "b": 8, "c": 8})
    for n in range(4):
        Image.open(root / "a" / f"{n}.png").save(root / f"copy-{n}.jpg", quality=95)
    return tmp_path


def deduplicated(folder: Path) -> None:
    from whiten.dedup import deduplicate, open_collection
    from whiten.dedup.writing import write_results
    from whiten.embedding import embed as module
    from whiten.embedding.opening import load

    module.SHARD_ROWS, module.BATCH = 4, 2  # many shards, for there are few images
    with open_collection(images_of(folder), load(STUDENT), folder / "embeddings") as collection:
        write_results(deduplicate(collection, 0.99), folder)


def compacted(folder: Path) -> None:
    from whiten.index import Index

    Index.build(STUDENT, images_of(folder), folder / "codes", storage="int8")


def results(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("[!.]*") if path.is_file()}


def codes(folder: Path) -> dict[str, bytes]:
    """The stored vector of each image; nothing where there is no index yet."""
    index = FolderIndex(folder / "codes")
    if index.facts is None:
        return {}
    ids = [name for page in index.pages(7) for name in page["id"].to_pylist()]
    return {name: v.tobytes() for name, v in zip(ids, index.fetch(ids).vectors, strict=True)}


def check_results(folder: Path) -> None:
    """Whole, or not there."""
    for name, content in results(folder).items():
        end = {".csv": b"\r\n", ".html": b"</html>\n", ".sh": b"fi\n"}[Path(name).suffix]
        assert content.endswith(end)


def check_codes(folder: Path) -> None:
    assert len(codes(folder)) in (0, 28)


@pytest.mark.slow
@pytest.mark.parametrize("at", ["time", "change"])
def test_near_duplicates_survive_kills(place: Path, at: str) -> None:
    reference = Reference.make(deduplicated, place / "whole", results)
    assert reference.contents["groups.csv"].count(b"\n") > 5
    kill_again_and_again(
        deduplicated, place / "work", reference, kills=KILLS, at=at, check=check_results,
        read=results,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("at", ["time", "change"])
def test_codes_survive_kills(place: Path, at: str) -> None:
    reference = Reference.make(compacted, place / "whole", codes)
    assert len(reference.contents) == 28
    kill_again_and_again(
        compacted, place / "work", reference, kills=KILLS, at=at, check=check_codes, read=codes
    )
