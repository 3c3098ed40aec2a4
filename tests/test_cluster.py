"""Embedding on a Ray cluster of two local nodes: the same bytes, whatever happens to the nodes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from command_line import Captured, fails
from helpers import TEACHER, write_factory, write_groups
from whiten.datasets.finding import find_items
from whiten.embedding import cluster as clusters
from whiten.embedding import embed as embedding
from whiten.embedding.cluster import connected, here
from whiten.errors import ClusterError, ConfigError, MissingExtraError

# Ray's own test cluster leaves files to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

IMAGES = 60


def test_a_wrong_address_is_refused() -> None:
    for address in ("spark", "ray://", "ray://head", "ray://:1", "ray:head:1"):
        with pytest.raises(ConfigError, match="cluster must be ray"), connected(address):
            pass


def test_no_address_is_no_cluster() -> None:
    with connected(None) as cluster:
        assert cluster is None


def test_a_missing_ray_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"whiten\[ray\]"), connected("ray"):
        pass


def test_nodes_of_other_versions_are_refused() -> None:
    ours = here()
    clusters._require_same("ray", ours, {"10.0.0.1": ours})
    for what, version in (("Python", "3.0"), ("whiten", "not installed")):
        theirs = {"10.0.0.1": ours, "10.0.0.2": ours | {what: version}}
        with pytest.raises(ClusterError, match=rf"10\.0\.0\.2 .* has {what} {version}"):
            clusters._require_same("ray", ours, theirs)


# --- with a cluster -----------------------------------------------------------------------


def add_node(nodes: Any) -> Any:
    return nodes.add_node(num_cpus=1, object_store_memory=80 * 2**20)


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with copies within a shard and across shards, and one that cannot be read."""
    folder = write_groups(tmp_path_factory.mktemp("cluster") / "images", {"a": IMAGES})
    files = sorted(folder.rglob("*.png"))
    for copy in (files[3], files[30], files[41], files[55]):
        shutil.copyfile(files[1], copy)
    files[20].write_bytes(b"no image")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_two_nodes_write_the_shards_of_one_machine(
    nodes: Any, collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "SHARD_ROWS", 8)
    write_factory(tmp_path / "code")
    monkeypatch.syspath_prepend(tmp_path / "code")
    from whiten.models.opening import open_model

    items, teacher = find_items(collection), open_model(TEACHER)
    embedding.embed(items, teacher, tmp_path / "one", views=(0, 1), workers=1)
    want = contents(tmp_path / "one")
    assert len(want) > 10
    lasting, leaving = add_node(nodes), add_node(nodes)
    done: list[int] = []

    def told(count: int, total: int) -> None:
        done.append(count)
        assert total == 2 * IMAGES
        if len(done) == 3:  # half way, a node is gone
            nodes.remove_node(leaving)

    with connected("ray") as cluster:
        assert cluster is not None
        embedding.embed(
            items, teacher, tmp_path / "two", views=(0, 1), progress=told, cluster=cluster
        )
    assert contents(tmp_path / "two") == want
    assert done == sorted(done) and done[-1] == 2 * IMAGES
    # A cluster that does not see the images skips none of them.
    with connected("ray") as cluster, monkeypatch.context() as patch:
        assert cluster is not None
        away = tmp_path / "away"
        patch.setattr("whiten.embedding.replicas.read_bytes", lambda path: b"is here")
        moved = [type(item)(item.id, str(away / item.id), item.group) for item in items]
        with pytest.raises(ClusterError, match="keep the images on storage that all nodes reach"):
            embedding.embed(moved, teacher, tmp_path / "three", cluster=cluster)
    nodes.remove_node(lasting)


@pytest.mark.slow
def test_a_killed_driver_goes_on_where_it_was(nodes: Any, collection: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "from whiten.cli import main\n"
        "from whiten.embedding import embed\n"
        "embed.SHARD_ROWS = 8\n"
        "main(sys.argv[1:])\n"
    )
    teacher = "timm:test_efficientnet?pretrained=0&size=32"
    command = [sys.executable, str(program), "embed", str(collection), "--model", teacher]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(out: str, *options: str) -> subprocess.Popen[str]:
        arguments = [*command, "--out", str(tmp_path / out), *options]
        return subprocess.Popen(
            arguments, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    assert start("one", "--workers", "1").wait(120) == 0
    lasting = add_node(nodes)
    killed = start("two", "--cluster", "ray")
    limit = time.monotonic() + 120
    while not list((tmp_path / "two").glob("part-*")):
        assert killed.poll() is None and time.monotonic() < limit, killed.communicate()[1]
        time.sleep(0.005)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    again = start("two", "--cluster", "ray")
    _, told = again.communicate(timeout=120)
    assert again.returncode == 0, told
    assert "/s" in told
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    nodes.remove_node(lasting)


@pytest.mark.slow
def test_an_index_that_a_cluster_embeds_is_the_same(
    nodes: Any, collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from whiten.index import Index

    write_factory(tmp_path / "code")
    monkeypatch.syspath_prepend(tmp_path / "code")
    one = Index.build(TEACHER, collection, tmp_path / "one")
    lasting = add_node(nodes)
    with connected("ray") as cluster:
        two = Index.build(TEACHER, collection, tmp_path / "two", cluster=cluster)
    assert two.changes == one.changes
    query = sorted(collection.rglob("*.png"))[7]
    assert two.search(query) == one.search(query)
    nodes.remove_node(lasting)


@pytest.mark.slow
def test_a_cluster_embeds_for_a_run(nodes: Any, images: Path, tmp_path: Path) -> None:
    from small_runs import OPTIONS, TEACHERS, losses
    from whiten.distillation.distill import distill

    lasting = add_node(nodes)
    for out, address in (("one", None), ("two", "ray")):
        distill(
            images, TEACHERS[:1], tmp_path / out, cluster=address, show_progress=False, **OPTIONS
        )
    assert losses(tmp_path / "two") == losses(tmp_path / "one")
    nodes.remove_node(lasting)


def test_no_server_is_one_line(capsys: Captured, images: Path, tmp_path: Path) -> None:
    for verb, *options in (
        ("embed", images, "--model", "demo:mobilenetv2"),
        ("index", images, "--model", "demo:mobilenetv2"),
        ("distill", images, "--teachers", "demo:mobilenetv2"),
    ):
        where = ["--out", tmp_path / verb, "--quiet", "--cluster", "ray://127.0.0.1:1"]
        assert "cannot reach a cluster at ray://127.0.0.1:1" in fails(
            capsys, verb, *options, *where
        )
