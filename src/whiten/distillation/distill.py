"""Distil teachers into a student: prepare a run, and train it in one process or several.

`prepare` writes everything to disk (cached teacher embeddings, whiteners, targets, a checkpoint of
step 0); then every process runs `train`.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whiten.datasets.finding import named_images
from whiten.distillation import deadline
from whiten.distillation.deadline import Deadline
from whiten.distillation.launched import is_launched, make_fabric, rank, require_processes
from whiten.distillation.on_cluster import train_on_cluster
from whiten.distillation.prepare import prepare
from whiten.distillation.training import train
from whiten.embedding.cluster import Cluster, check_address, connected
from whiten.errors import ConfigError, RunError
from whiten.media.reading import Skipped
from whiten.models.choice import choice_restored, choose, chosen, chosen_device
from whiten.models.student import load_student
from whiten.runs.folder import RunFolder
from whiten.runs.spec import DistillSpec
from whiten.storage.services import refuse_as_output
from whiten.utils.devices import random_state_kept, require_compiler
from whiten.utils.files import holding
from whiten.utils.progress import be_quiet, is_quiet, logging_to, note

# Silence Lightning's log messages. Set on import, so that spawned processes are silent, too; its
# own import resets the level of its root logger only.
for _name in ("rank_zero", "distributed"):
    logging.getLogger(f"lightning_fabric.utilities.{_name}").setLevel(logging.WARNING)

# Runs in threads of one process take turns: they share torch's random state.
_turns = threading.Lock()


@dataclass(frozen=True)
class DistillResult:
    """Result of a run.

    Attributes:
        out: the run folder.
        student: the student's folder, for `whiten.load`.
        steps: total number of training steps.
        loss: loss of the last step.
        recipe: the objective, and why it was chosen.
        gain: scores of the starts and of the student on held-out images, in one line.
        skipped: images that could not be used, with the reason.
    """

    out: Path
    student: Path
    steps: int
    loss: float
    recipe: str
    gain: str
    skipped: list[Skipped]


def distill(
    images: str | os.PathLike[str],
    spec: DistillSpec | Sequence[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    cache: str | os.PathLike[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    show_progress: bool = True,
    cluster: str | None = None,
    **options: Any,
) -> DistillResult:
    """Distil teachers into a student on a folder of images.

        whiten.distill("photos", ["demo:mobilenetv2"], "runs/a", dim=128)
        whiten.distill("photos", DistillSpec(teachers=["demo:mobilenetv2"], dim=128), "runs/a")

    Args:
        images: a folder, or a CSV or Parquet with columns `path,group`; "" to resume a run on its
            own.
        spec: the options; or the teachers' URIs, see `whiten teachers`, with other options as
            keywords. May be omitted to resume a run, on other hardware if options say so.
        out: the run folder; must be new or empty.
        cache: folder for the teachers' embeddings, to share them between runs; by default inside
            the run folder, or to resume where the run has kept them.
        resume: continue the run in `out`; `device`, `compile`, `micro_batch` and `workers` may be
            others than before.
        overwrite: delete the run in `out` first.
        show_progress: show progress on stderr.
        cluster: Ray cluster, `ray` or `ray://HEAD:PORT`, that embeds, and that trains if there are
            several devices or nodes; by default this machine does. Its nodes share the folders.
        options: fields of `whiten.runs.spec.DistillSpec`.

    Raises:
        WhitenError: bad input; what has been computed is kept and reused by the next run.
    """
    if out is None:
        raise ConfigError("name the run folder: distill(images, teachers, out)")
    run = RunFolder(Path(out))
    if resume and not images:
        images, _ = run.read_config()
    if not isinstance(spec, DistillSpec):
        if isinstance(spec, str):
            raise ConfigError(f"teachers is a list of URIs: write [{spec!r}]")
        if resume and not spec:
            _, begun = run.read_config()
            spec = DistillSpec.from_mapping({**begun.to_mapping(), **options})
        else:
            spec = DistillSpec.from_mapping({"teachers": list(spec or ()), **options})
    elif options:
        raise ConfigError(f"{', '.join(options)}: set options in the spec, or pass keywords alone")
    if cluster is None:
        require_processes(spec)
    else:
        check_address(cluster)
        if is_launched():
            raise ConfigError("--cluster starts its own processes: leave out torchrun or srun")
    if resume and overwrite:
        raise ConfigError("resume goes on with a run, overwrite deletes it: give one of the two")
    with _turns, random_state_kept(), choice_restored():
        if spec.device != "auto":
            choose(chosen().runtime, spec.device)
        if spec.compile:
            require_compiler(chosen_device())
        with _alone(run):
            return _distill(images, spec, run, cache, resume, overwrite, show_progress, cluster)


@contextmanager
def _alone(run: RunFolder) -> Iterator[None]:
    """Hold a run's folder: a second process would take the student of the first away.

    Raises:
        RunError: another process holds it.
    """
    refuse_as_output(run.root, "a run")
    if rank() > 0 or run.root.is_file():  # the first process holds it for all; files are refused
        yield
        return
    is_new = not run.root.exists()
    run.root.mkdir(parents=True, exist_ok=True)
    try:
        with ExitStack() as held:
            try:
                held.enter_context(holding(run.root))
            except BlockingIOError:
                raise RunError(
                    f"another process is at work in {run.root}: wait until it is done, or name "
                    "another --out"
                ) from None
            yield
    finally:
        if is_new:
            with suppress(OSError):  # a run that was refused leaves nothing
                run.root.rmdir()


def _distill(
    images: str | os.PathLike[str],
    spec: DistillSpec,
    run: RunFolder,
    cache: str | os.PathLike[str] | None,
    resume: bool,
    overwrite: bool,
    show_progress: bool,
    cluster: str | None,
) -> DistillResult:
    began = deadline.clock()
    is_finished = resume and run.is_finished
    # Under torchrun or SLURM all processes get here, and rank 0 works for all.
    is_first = rank() == 0
    place = Path(cache) if cache else run.cache if resume else run.embeddings
    if is_first:
        spec = run.begin(named_images(images), spec, place, resume=resume, overwrite=overwrite)
    if not is_finished:
        is_shown = show_progress and is_first
        with logging_to(run.log, enabled=is_shown), connected(cluster) as on:
            _launch(run, named_images(images), spec, place, began, show_progress, on)
            _note_results(run)
    records = run.read_metrics()
    _, config = load_student(run.student)
    return DistillResult(
        out=run.root,
        student=run.student,
        steps=len(records),
        loss=records[-1]["loss"] if records else math.nan,
        recipe=config.training["recipe"],
        gain=config.training.get("gain", ""),
        skipped=[Skipped(*pair) for pair in config.training.get("skipped", [])],
    )


def _note_results(run: RunFolder) -> None:
    """Log what was gained and skipped."""
    training = load_student(run.student)[1].training
    note(f"gain: {training.get('gain', '')}")
    for name, reason in training.get("skipped", []):
        note(f"skipped {name}: {reason}")


def _launch(
    run: RunFolder,
    images: str,
    spec: DistillSpec,
    embeddings: Path,
    began: float,
    show_progress: bool,
    cluster: Cluster | None,
) -> None:
    def prepare_run() -> DistillSpec:
        until = Deadline.of(spec, began)
        return prepare(
            run, images, spec, embeddings, until, show_progress=show_progress, cluster=cluster
        )

    processes = spec.devices * spec.nodes
    are_started = is_launched() and processes > 1
    if not are_started:
        spec = prepare_run()
    if cluster is not None and processes > 1:
        train_on_cluster(cluster, run, spec, began, show_progress)
        return
    fabric = make_fabric(spec, devices=spec.devices, nodes=spec.nodes, are_started=are_started)
    if are_started:
        fabric.launch()
        if fabric.is_global_zero:
            prepare_run()
        fabric.barrier()
        if spec.budget is not None:  # rank 0 has planned
            _, spec = run.read_config()
        train(fabric, run, spec, began, show_progress)
    elif processes > 1:
        try:  # plain values: the launcher refuses frozen dataclasses
            options = spec.to_mapping()
            fabric.launch(
                _train_spawned,
                str(run.root),
                options,
                vars(chosen()),
                began,
                show_progress,
                is_quiet(),
            )
        except BaseException:  # an interrupt may have reached only this process
            for child in multiprocessing.active_children():
                child.terminate()
            raise
    else:
        train(fabric, run, spec, began, show_progress)


def _train_spawned(
    fabric: Any,
    root: str,
    options: dict[str, Any],
    choice: dict[str, str],
    began: float,
    show_progress: bool,
    quiet: bool,
) -> None:
    be_quiet(quiet)
    choose(**choice)
    run = RunFolder(Path(root))
    with logging_to(run.log, enabled=show_progress and fabric.is_global_zero):
        train(fabric, run, DistillSpec.from_mapping(options), began, show_progress)
