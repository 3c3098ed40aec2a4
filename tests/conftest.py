"""What several test files share: one thread, small folders of images, and places of indexes."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from exporting import write_student
from helpers import TEACHER, write_factory, write_groups
from pictures import picture
from postgres import Server
from whiten.embedding import embed, row_makers
from whiten.embedding.encoder import Encoder
from whiten.embedding.opening import load
from whiten.models.student_graph import finish_student

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of processes that tests start
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # for tests that import ONNX Runtime themselves
# Else a fork may wait forever for threads of a Milvus client; forks in tests only start programs.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

ImageFolder = Callable[..., Path]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that no process starts one when the others are done."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Spare the collection of garbage, which some fixtures ask for, what was imported."""
    import hypothesis  # noqa: F401 - looks for referrers of what was imported

    gc.collect()
    gc.freeze()


@pytest.fixture
def image_folder() -> ImageFolder:
    """`image_folder(root, groups=3, per_group=4)` fills `root` with a folder for each group.

    The images are the same every time, of differing shapes, and JPEG, PNG and WebP in turn.
    """

    def make(root: Path, *, groups: int = 3, per_group: int = 4) -> Path:
        formats = (".jpg", ".png", ".webp")
        for number in range(groups * per_group):
            group, member = divmod(number, per_group)
            folder = root / f"group{group}"
            folder.mkdir(parents=True, exist_ok=True)
            image = picture(number, 40 + number % 3 * 9, 32 + number % 2 * 12, blobs=(5, 6))
            image.save(folder / f"{member:03d}{formats[number % 3]}")
        return root

    return make


@pytest.fixture(scope="session")
def groups() -> dict[str, int]:
    """How many images each group of `images` has; files and folders that want others say so."""
    return dict.fromkeys("abcd", 4)


@pytest.fixture
def images(tmp_path: Path, groups: dict[str, int]) -> Path:
    """`images/GROUP/N.png`, for a test to change as it likes."""
    return write_groups(tmp_path / "images", groups)


@pytest.fixture(scope="module")
def shared_images(tmp_path_factory: pytest.TempPathFactory, groups: dict[str, int]) -> Path:
    """The same, once per file, for tests that only read them."""
    return write_groups(tmp_path_factory.mktemp("images"), groups)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embeddings, once per file, so that only the first test computes them."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def mixed_images(tmp_path: Path, image_folder: ImageFolder) -> Path:
    """Three groups of four images of differing shapes and formats."""
    return image_folder(tmp_path / "images")


@pytest.fixture
def colour_teachers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Teachers that cost nothing, importable, in a folder of their own to work in."""
    write_factory(tmp_path / "code")
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores are written in shards of 5 rows, and embedded in batches of 2."""
    monkeypatch.setattr(embed, "SHARD_ROWS", 5)
    monkeypatch.setattr(row_makers, "BATCH", 2)


@pytest.fixture
def encoder(colour_teachers: None) -> Encoder:
    """A model that costs nothing."""
    return load(TEACHER)


@pytest.fixture
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whiten.models.choice.may_have_gpu", lambda: False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student with its graph, once per file."""
    folder = write_student(tmp_path_factory.mktemp("made") / "student")
    assert finish_student(folder) == ""
    return folder


@pytest.fixture(params=["folder", pytest.param("milvus", marks=pytest.mark.slow), "pgvector"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A place of an index, of each kind."""
    if request.param == "folder":
        yield str(tmp_path / "index")
    elif request.param == "milvus":
        yield f"milvus:{tmp_path / 'index.db'}#photos"
    else:
        yield f"pgvector:{request.getfixturevalue('postgres').new_schema()}#photos"
    gc.collect()  # a database is let go of with the last index that uses it


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    server = Server()
    yield server
    gc.collect()  # connections are let go of with the last index that uses them
    server.stop()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A Ray cluster of a head without cores; tests add the nodes that compute."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster
    cluster.shutdown()
