"""Connect to a Ray cluster, and embed on it: its nodes compute, this process writes the stores.

Ray is imported here and in `replicas` only. The images must be on storage that every node reaches
by the same paths; models travel from this process.
"""

from __future__ import annotations

import os
import platform
import socket
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from whiten._version import __version__
from whiten.embedding.parts import Part
from whiten.embedding.replicas import Pool, Work
from whiten.embedding.row_makers import Computed, Task
from whiten.errors import ClusterError, ConfigError, MissingExtraError, one_line
from whiten.utils.threads import cores

_SECONDS = 10.0  # to reach the head of a cluster


class Cluster:
    """A Ray cluster that this process is connected to."""

    def __init__(self, ray: Any) -> None:
        self.ray = ray

    def make_parts(
        self,
        tasks: Iterable[Task],
        maker: Computed,
        expected: int,
        workers: int | None,
        told: Callable[[int], None],
    ) -> Iterator[Part]:
        """Yield what `parts.make_parts` would yield, computed on the cluster.

        Args:
            maker: whose model and plan the replicas get.
            expected: images that the runtime of the replicas is chosen for.
            workers: cores per replica; by default 4, or what the smallest node has.
            told: called with the number of views of each part.

        Raises:
            ClusterError: there is no place for a replica; a node lacks the images or the model; or
                the same images ended several replicas.
        """
        work = Work(maker.teacher, maker.plan, maker.bf16, expected)
        with Pool(self.ray, work, workers) as pool:
            try:
                yield from pool.make_parts(tasks, maker, told)
            except ConnectionError as error:
                raise ClusterError(
                    f"the connection to the cluster is lost ({one_line(error)}): what it has "
                    "embedded is kept, the same command continues"
                ) from error


def check_address(address: str) -> None:
    """Refuse anything but `ray` and `ray://HOST:PORT`.

    Raises:
        ConfigError: see above.
    """
    _, _, place = address.partition("ray://")
    host, _, port = place.rpartition(":")
    if address != "ray" and not (address.startswith("ray://") and host and port.isdecimal()):
        raise ConfigError(
            f"cluster must be ray (that of this machine, or this machine alone) or "
            f"ray://HEAD:PORT, not {address!r}"
        )


@contextmanager
def connected(address: str | None) -> Iterator[Cluster | None]:
    """Connect to a cluster for the time of the block.

    Args:
        address: `ray`, the cluster that this machine belongs to, or this machine alone if there is
            none; `ray://HEAD:PORT`, with the port of the Ray Client server (10001 by default); or
            None, which yields None.

    Raises:
        ConfigError: the address is neither.
        MissingExtraError: Ray is not installed.
        ClusterError: there is no cluster, or one with another version of Python or of whiten.
    """
    if address is None:
        yield None
        return
    check_address(address)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray warns
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("a cluster", "ray") from error
    _connect(ray, address)
    try:
        _require_same(address, here(), _facts_of_nodes(ray))
        yield Cluster(ray)
    finally:
        with suppress(Exception):  # a cluster that is gone cannot be left
            ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    how: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if address != "ray":
                host, _, port = address.removeprefix("ray://").rpartition(":")
                socket.create_connection((host.strip("[]"), int(port)), _SECONDS).close()
                ray.init(address, **how)
                return
            try:
                ray.init("auto", **how)
            except ConnectionError:
                ray.init("local", num_cpus=cores(), include_dashboard=False, **how)
    except (ImportError, OSError, RuntimeError, ValueError, OverflowError) as error:
        text = one_line(error)
        if "ersion" in text:
            raise ClusterError(
                f"{address} runs another version of Python or Ray than this machine: install the "
                f"same on both ({text})"
            ) from error
        raise ClusterError(
            f"cannot reach a cluster at {address} ({text}): start one with `ray start --head`, or "
            "name the host of its head and the port of its client server, 10001 by default"
        ) from error


def here() -> dict[str, str]:
    """Return the versions that must be the same on all machines of a cluster."""
    return {"Python": ".".join(platform.python_version_tuple()[:2]), "whiten": __version__}


def _facts_of_nodes(ray: Any) -> dict[str, dict[str, str]]:
    """Return the versions of each node, by its address."""

    def facts() -> dict[str, str]:  # nested, so that Ray sends its code: whiten may be missing
        import platform

        try:
            from whiten._version import __version__ as version
        except ImportError:
            version = "not installed"
        return {"Python": ".".join(platform.python_version_tuple()[:2]), "whiten": version}

    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = {n["NodeID"]: n["NodeManagerAddress"] for n in ray.nodes() if n["Alive"]}
    probe = ray.remote(num_cpus=0)(facts)
    found = {}
    for node, address in nodes.items():
        where = NodeAffinitySchedulingStrategy(node, soft=False)
        try:
            found[address] = ray.get(probe.options(scheduling_strategy=where).remote(), timeout=60)
        except ray.exceptions.RayError:
            continue  # a node that is just leaving, or too busy to start a process
    return found


def _require_same(address: str, ours: dict[str, str], nodes: dict[str, dict[str, str]]) -> None:
    for node, theirs in nodes.items():
        for what, version in ours.items():
            if theirs[what] != version:
                raise ClusterError(
                    f"node {node} of {address} has {what} {theirs[what]}, this machine has "
                    f"{version}: install the same on all nodes, their embeddings could differ"
                )
