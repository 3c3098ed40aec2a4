"""Replicas of a model on the nodes of a Ray cluster, and the units of work that they share.

A unit is what one shard of the store holds. Units are computed in any order and yielded in theirs,
so that the store's shards are those that one machine writes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from whiten.embedding.parts import Part, make_parts
from whiten.embedding.repeats import Repeats
from whiten.embedding.row_makers import Computed, Task
from whiten.embedding.setup import Setup
from whiten.errors import ClusterError, ImageError, WhitenError, one_line
from whiten.media.reading import Unread, read_bytes
from whiten.models.choice import chosen
from whiten.models.teacher import Teacher, first_line
from whiten.utils.arrays import Vectors
from whiten.views.plan import ViewPlan

CORES = 4  # per replica, where there are no GPUs: decoding and a small model keep these busy
DEATHS = 3  # replicas that may end at the same unit, or before their first one
_AHEAD = 3  # units per replica that are computed, or wait for an earlier one
_LOOK = 5.0  # seconds between looks at the nodes, which come and go
_STARTING = 600.0  # seconds until a replica must have been placed and have loaded its model


@dataclass(frozen=True)
class Work:
    """The model of all replicas, and how they compute with it.

    Attributes:
        teacher, plan, bf16: see `Computed`.
        expected: images that the runtime is chosen for.
    """

    teacher: Teacher
    plan: ViewPlan
    bf16: bool
    expected: int


class Replica:
    """One copy of a model, in a process of its own."""

    def open(self, work: bytes, setup: Setup) -> str:
        """Load the model; return why it cannot be used, or ""."""
        from ray import cloudpickle

        try:
            setup.apply()
            told: Work = cloudpickle.loads(work)
            teacher = told.teacher.on_chosen_device()
            self._maker = Computed(teacher, told.plan, None, bf16=told.bf16)
            self._maker.expect(told.expected)
        except (WhitenError, ImportError, OSError, MemoryError) as error:
            return one_line(error)
        self._cores = setup.cores
        return ""

    def ping(self) -> str:
        """Return that this replica is there, in the way that `open` does."""
        return ""

    def make(self, tasks: list[Task], known: dict[str, Vectors]) -> Part:
        """Embed one unit.

        Args:
            known: embeddings of contents that earlier units hold, by content hash.
        """
        self._maker.repeats = Repeats(self._maker.teacher.dim)
        for digest, embedding in known.items():
            self._maker.repeats.add(digest, embedding)
        [part] = make_parts(tasks, self._maker, self._cores, lambda views: None)
        return part


@dataclass
class _Unit:
    tasks: list[Task]
    known: dict[str, Vectors] = field(default_factory=dict)
    deaths: int = 0
    part: Part | None = None

    @property
    def views(self) -> int:
        return sum(len(task.views) for task in self.tasks)


class Pool:
    """Replicas, one per GPU, or per so many cores if no node has a GPU."""

    def __init__(self, ray: Any, work: Work, cores: int | None) -> None:
        self._ray = ray
        self._payload = ray.put(ray.cloudpickle.dumps(work))
        self._cores = cores
        self._starting: dict[Any, tuple[Any, bool]] = {}  # by answer; whether it is a new one
        self._busy: dict[Any, tuple[Any, _Unit]] = {}
        self._idle: deque[Any] = deque()
        self._failed_starts = 0
        self._looked = self._moved = -float("inf")

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        held = [*self._starting.values(), *self._busy.values()]
        for replica in [*(replica for replica, _ in held), *self._idle]:
            self._ray.kill(replica)

    def make_parts(
        self, tasks: Iterable[Task], maker: Computed, told: Callable[[int], None]
    ) -> Iterator[Part]:
        """Yield the parts in order, see `Cluster.make_parts`."""
        units = _units(tasks)
        queue: deque[_Unit] = deque()  # handed out and not yielded yet
        again: deque[_Unit] = deque()
        left: Iterator[_Unit] | None = units
        self._moved = time.monotonic()
        while True:
            self._look()
            while self._idle:
                if again:
                    unit = again.popleft()
                elif left is not None and len(queue) < _AHEAD * self._count:
                    new = next(left, None)
                    if new is None:
                        left = None
                        continue
                    queue.append(unit := new)
                else:
                    break
                self._hand_out(unit)
            while queue and (part := queue[0].part) is not None:
                unit = queue[0]
                if not unit.known and (known := _embedded_before(unit.tasks, part, maker)):
                    unit.known, unit.part = known, None
                    again.appendleft(unit)
                    break
                queue.popleft()
                _remember(unit.tasks, part, maker)
                yield part
                told(unit.views)
            if not queue and left is None:
                return
            if not (again and self._idle):
                again.extend(self._wait())

    @property
    def _count(self) -> int:
        return len(self._starting) + len(self._busy) + len(self._idle)

    def _hand_out(self, unit: _Unit) -> None:
        replica = self._idle.popleft()
        self._busy[replica.make.remote(unit.tasks, unit.known)] = (replica, unit)

    def _look(self) -> None:
        """Start replicas where there is room for more."""
        if time.monotonic() - self._looked < _LOOK:
            return
        self._looked = time.monotonic()
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        gpus = [int(node.get("GPU", 0)) for node in nodes]
        cpus = [int(node.get("CPU", 0)) for node in nodes]
        resources: dict[str, Any]
        if any(gpus) and chosen().device != "cpu":
            per_gpu = min(cpu // gpu for cpu, gpu in zip(cpus, gpus, strict=True) if gpu)
            cores = max(1, min(self._cores or 2 * CORES, per_gpu))
            wanted, resources = sum(gpus), {"num_gpus": 1, "num_cpus": min(cores, per_gpu)}
        else:
            cores = self._cores or min([CORES, *(cpu for cpu in cpus if cpu)])
            wanted, resources = sum(cpu // cores for cpu in cpus), {"num_cpus": cores}
        if not wanted and not self._count:
            raise ClusterError(
                f"no node of the cluster has {cores} cores for a replica of the model: lower "
                "--workers, or add a node"
            )
        actor = self._ray.remote(Replica).options(
            **resources, max_restarts=0, scheduling_strategy="SPREAD"
        )
        for _ in range(wanted - self._count):
            replica = actor.remote()
            setup = Setup.here(cores, has_gpu="num_gpus" in resources)
            self._starting[replica.open.remote(self._payload, setup)] = (replica, True)

    def _wait(self) -> list[_Unit]:
        """Wait until something has happened; return units whose replicas have ended."""
        lost: list[_Unit] = []
        refs = [*self._busy, *self._starting]
        done = self._ray.wait(refs, timeout=_LOOK)[0] if refs else []
        if not refs:
            time.sleep(1.0)  # until the next look at the nodes
        if done or self._busy:
            self._moved = time.monotonic()
        elif time.monotonic() - self._moved > _STARTING:
            raise ClusterError(
                f"no replica of the model has started in {_STARTING / 60:.0f} minutes: are the "
                "cores or GPUs of the cluster taken by other jobs? What is embedded is kept"
            )
        for ref in done:
            if ref in self._starting:
                self._started(ref)
                continue
            replica, unit = self._busy.pop(ref)
            try:
                part: Part = self._ray.get(ref)
            except self._ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except self._ray.exceptions.RayError as error:
                self._look_after_a_death()
                unit.deaths += 1
                if unit.deaths >= DEATHS:
                    first, last = unit.tasks[0].item.id, unit.tasks[-1].item.id
                    raise ClusterError(
                        f"the images from {first!r} to {last!r} ended {DEATHS} replicas of the "
                        f"model, the last one with: {first_line(error)}; what is embedded is kept"
                    ) from error
                lost.append(unit)
                continue
            self._idle.append(replica)
            _require_shared(unit.tasks, part)
            unit.part = part
        return lost

    def _look_after_a_death(self) -> None:
        """Replace the replica, and ask those without work whether their node is still there."""
        self._looked = -float("inf")
        while self._idle:
            replica = self._idle.popleft()
            self._starting[replica.ping.remote()] = (replica, False)

    def _started(self, ref: Any) -> None:
        replica, is_new = self._starting.pop(ref)
        try:
            reason = self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            self._failed_starts += is_new
            if self._failed_starts >= DEATHS and not (self._busy or self._idle):
                raise ClusterError(
                    f"replicas of the model end while they start: {first_line(error)}"
                ) from error
            return
        if reason:
            raise ClusterError(f"a node of the cluster cannot load the model: {reason}")
        self._idle.append(replica)


def _units(tasks: Iterable[Task]) -> Iterator[_Unit]:
    waiting: list[Task] = []
    for task in tasks:
        waiting.append(task)
        if task.ends_shard:
            yield _Unit(waiting)
            waiting = []


def _shared(tasks: list[Task], part: Part, maker: Computed) -> Iterator[tuple[str, Vectors]]:
    """Yield content hash and embedding of rows that may be those of other images."""
    repeating = {task.item.id for task in tasks if task.may_repeat}
    for row in part.rows if repeating else ():
        if row.id in repeating and not maker.plan.is_random(row.view):
            yield row.content_hash, row.embedding


def _embedded_before(tasks: list[Task], part: Part, maker: Computed) -> dict[str, Vectors]:
    """Return embeddings that earlier units have for the contents of this one.

    One machine copies them; a replica knows them only at its second attempt.
    """
    found = (digest for digest, _ in _shared(tasks, part, maker) if digest in maker.repeats)
    return {digest: maker.repeats[digest] for digest in found}


def _remember(tasks: list[Task], part: Part, maker: Computed) -> None:
    for digest, embedding in _shared(tasks, part, maker):
        maker.repeats.add(digest, embedding)


def _require_shared(tasks: list[Task], part: Part) -> None:
    """Refuse to skip an image that this machine can read: a node does not have the folder."""
    unread = {skip.id: skip.reason for skip in part.skipped if isinstance(skip, Unread)}
    for task in tasks if unread else ():
        if task.item.id in unread:
            try:
                read_bytes(task.item.path)
            except ImageError:
                continue
            raise ClusterError(
                f"a node of the cluster cannot read {task.item.path} "
                f"({unread[task.item.id]}), this machine can: keep the images on storage that all "
                "nodes reach by the same path"
            )
