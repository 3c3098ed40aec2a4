"""The training loop; read it from top to bottom.

It starts from the last checkpoint, so starting and resuming are the same code. A step is a pure
function of the options and the step number, so that a resumed run follows the same trajectory.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from whiten.distillation.averages import blended, update_average
from whiten.distillation.best import Best
from whiten.distillation.deadline import Deadline
from whiten.distillation.folding import folded_norms
from whiten.distillation.measuring import held_precisions
from whiten.distillation.micro_batches import MicroBatches, fitting_size, free_memory, memory_told
from whiten.distillation.objective import Batch, objective
from whiten.distillation.optimizing import learning_rate, make_optimizer
from whiten.distillation.pairs import Pair
from whiten.distillation.training_set import TrainingSet
from whiten.errors import RunError
from whiten.models.card import model_card
from whiten.models.student import (
    StudentNet,
    build_student,
    freeze_unused,
    save_student,
)
from whiten.models.student_folder import StudentConfig
from whiten.models.student_graph import finish_student
from whiten.runs.folder import RunFolder
from whiten.runs.spec import DistillSpec
from whiten.utils.progress import announce, progress
from whiten.utils.threads import ordered_map
from whiten.views.on_device import model_input
from whiten.views.rendering import Preprocess


@memory_told()
def train(
    fabric: Any, run: RunFolder, spec: DistillSpec, began: float, show_progress: bool
) -> None:
    """Train from the last checkpoint to the end and write the student.

    Args:
        began: `deadline.clock` at the begin of this start of the run.
    """
    data = TrainingSet.open(run, spec)
    spec = data.spec
    state = run.load_checkpoint()
    net, config = build_student(
        spec.student, dim=spec.dim, pool=spec.pooling, size=spec.size, pretrained=False
    )
    net.load_state_dict(state["model"])
    average = {k: v.clone() for k, v in state["ema"].items()}
    freeze_unused(net, config.preprocess)
    # Frozen statistics stay those of the pretrained backbone; runs before 0.2 had none frozen.
    is_moving = spec.batch_statistics != "frozen"
    is_frozen = spec.backbone_lr == 0
    optimizer = make_optimizer(net, spec)
    model, wrapped = fabric.setup(_what_trains(net, spec, fabric), optimizer)
    if state["optimizer"]:
        optimizer.load_state_dict(state["optimizer"])
    average, first_weights = (
        {k: v.to(fabric.device) for k, v in states.items()}
        for states in (average, state.get("first", {}))
    )
    best = Best.of(state.get("best"))
    pace = 1.0 if best is None else best.pace

    batches_per_epoch = data.plan.batches_per_epoch
    assert spec.epochs is not None
    total = spec.epochs * batches_per_epoch
    stop = total if spec.stop_step is None else min(total, spec.stop_step)
    step = int(state["step"])
    until = Deadline.of(spec, began - state.get("spent", 0.0))
    if fabric.is_global_zero:
        run.truncate_metrics(step)
    names = data.teacher_names
    micro = state.get("micro_batch")
    if micro is None or isinstance(spec.micro_batch, int):  # which may be new
        micro = _micro_batch(net, data, config, fabric)

    def kept() -> dict[str, Tensor]:
        """Return the weights of the student if training ended here."""
        weights = average or net.state_dict()
        return blended(weights, first_weights, spec.keep_start or 0.0)

    def checkpoint() -> None:
        if fabric.is_global_zero:
            run.save_checkpoint(
                {
                    "step": step,
                    "model": _cpu(net.state_dict()),
                    "optimizer": optimizer.state_dict(),
                    "ema": _cpu(average),
                    "first": _cpu(first_weights),
                    "best": None if best is None else vars(best),
                    "spent": until.spent,
                    "micro_batch": micro,
                }
            )

    visible = show_progress and fabric.is_global_zero
    set_training(model, is_moving)
    with (
        progress("distil", enabled=visible) as update,
        run.metrics.open("a") as log,
        nullcontext() if is_frozen or spec.compile else folded_norms(net, config.preprocess.size),
    ):
        # A run that was killed after it had stopped early does not go on.
        is_over = step >= stop or (best is not None and best.is_over(step, batches_per_epoch))
        left = () if is_over else _batches(data, config.preprocess, spec, fabric, start=step)
        began, first = time.monotonic(), step
        epoch_began = until.spent
        for batch, inputs in left:
            torch.manual_seed(_step_seed(spec.seed, step))  # for drop-path and similar
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, total, spec) * pace * group["lr_scale"]
            parts = None if micro is None else MicroBatches(fabric, model, inputs, micro)
            embeddings = model(inputs).float() if parts is None else parts.embed()
            student_x, student_y = embeddings.chunk(2)
            loss, value, wins = _loss(data, batch, student_x, student_y, spec, fabric, step)
            if not math.isfinite(value):
                raise RunError(_nan_message(run, data, batch, step))
            wrapped.zero_grad()
            if parts is None:
                fabric.backward(loss)
            else:
                parts.backward(loss, embeddings)
            if spec.clip > 0:
                fabric.clip_gradients(model, wrapped, max_norm=spec.clip, error_if_nonfinite=False)
            wrapped.step()
            if spec.ema > 0:
                update_average(average, net, spec.ema)
            step += 1
            is_epoch = step % batches_per_epoch == 0
            starts_again = False
            speed = (step - first) * 2 * data.plan.batch_size / (time.monotonic() - began)
            if fabric.is_global_zero:
                record = {
                    "step": step,
                    "epoch": (step - 1) // batches_per_epoch,
                    "loss": value,
                    "lr": optimizer.param_groups[-1]["lr"],
                    "wins": dict(zip(names, wins, strict=True)),
                    "images_per_s": round(speed, 1),
                }
                if is_epoch and data.held_out is not None and best is not None:
                    weights = kept()
                    precisions = held_precisions(net, weights, data, config.preprocess, fabric)
                    record["held_out"] = float(precisions.mean())
                    starts_again = best.see(step, precisions, _cpu(weights))
                    set_training(model, is_moving)
                log.write(json.dumps(record) + "\n")
                log.flush()
            update(step, total, loss=f"{value:.3f}", images=f"{speed:.0f}/s")
            if is_epoch and fabric.broadcast(starts_again):
                weights, pace = fabric.broadcast((best.model, best.pace) if best else None)
                net.load_state_dict(weights)
                average = {name: net.state_dict()[name].clone() for name in average}
                optimizer.state.clear()
            if step % spec.checkpoint_every == 0 or is_epoch:
                checkpoint()
            is_over = is_epoch and best is not None and best.is_over(step, batches_per_epoch)
            # Only whole epochs are measured, so none is begun that would not end in time.
            whole = until.spent - epoch_began if is_epoch and best is not None else 0.0
            is_over = is_over or not until.leaves(whole)
            if is_epoch or until.seconds is not None:
                is_over = fabric.broadcast(is_over)
            epoch_began = until.spent if is_epoch else epoch_began
            if is_over or step == stop:
                break
    if fabric.is_global_zero:
        net.load_state_dict(kept() if best is None else best.model)
        _finish(run, net, data.describe(config, step, best))
        if show_progress and (missing := data.missing(best)):
            announce(f"warning: {'; '.join(missing)}")
        if spec.budget is not None:  # so that its configuration alone repeats the run
            images, planned = run.read_config()
            run.write_config(images, dataclasses.replace(planned, stop_step=step), run.cache)
        data.remove()
    fabric.barrier()


def _what_trains(net: StudentNet, spec: DistillSpec, fabric: Any) -> nn.Module:
    """Return the module whose forward pass is a step."""
    # A frozen backbone's cached features are the input, and only the projection is trained.
    if spec.backbone_lr == 0:
        return net.projection
    trained: nn.Module = EachSide(net) if spec.recipe == "paper" else net
    if spec.compile:
        trained = cast(nn.Module, torch.compile(trained))
    is_moving = spec.batch_statistics != "frozen"
    if is_moving and fabric.world_size > 1 and fabric.device.type == "cuda":
        trained = nn.SyncBatchNorm.convert_sync_batchnorm(trained)  # type: ignore[no-untyped-call]
    return trained


def _finish(run: RunFolder, net: StudentNet, config: StudentConfig) -> None:
    """Write the student, and its graph if it can be exported."""
    reasons: list[str] = []
    save_student(
        net,
        config,
        run.student,
        model_card(config),
        finish=lambda folder: reasons.append(finish_student(folder)),
    )
    for reason in filter(None, reasons):
        announce(f"the student runs in torch alone: {reason}")


def set_training(model: nn.Module, is_moving: bool) -> None:
    """Switch to training, but leave the statistics of batch normalisation if they are frozen."""
    model.train()
    if not is_moving:
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


def _micro_batch(
    net: StudentNet, data: TrainingSet, config: StudentConfig, fabric: Any
) -> int | None:
    """Return the images per forward pass; None is the whole batch."""
    spec = data.spec
    if spec.backbone_lr == 0:  # cached features are small
        return None
    views = 2 * data.plan.batch_size // fabric.world_size
    size = spec.micro_batch
    if size == "auto":
        free = free_memory(fabric.device)
        if fabric.device.type == "cpu":  # which the processes share
            free //= spec.devices
        size = fabric.broadcast(fitting_size(net, config.preprocess.size[0], views, free))
    return size if isinstance(size, int) and size < views else None


# --- one step ---------------------------------------------------------------------------


class EachSide(nn.Module):
    """Runs the two sides of the pairs one after the other, as the published code does.

    Batch normalisation thus computes its statistics per side.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, inputs: Tensor) -> Tensor:
        """Embed the x sides, then the y sides, (2b, …) -> (2b, dim)."""
        return torch.cat([self.net(side) for side in inputs.chunk(2)])


def _loss(
    data: TrainingSet,
    joined: Sequence[Pair],
    student_x: Tensor,
    student_y: Tensor,
    spec: DistillSpec,
    fabric: Any,
    step: int,
) -> tuple[Tensor, float, list[float]]:
    """Return this process's loss, the joined batch's loss, and the positives per teacher."""
    share = len(joined) // fabric.world_size
    mine = joined[fabric.global_rank * share : (fabric.global_rank + 1) * share]
    targets_x, targets_y = data.teacher_targets(mine, fabric.device)
    generator = torch.Generator().manual_seed(_step_seed(spec.seed, step))
    fused: tuple[Tensor | None, Tensor | None] = (None, None)
    if spec.align or spec.queue:
        fused = data.fused_targets(mine, fabric.device)
    batch = Batch(
        student_x,
        student_y,
        targets_x,
        targets_y,
        labels=torch.tensor([pair.label for pair in joined], device=fabric.device),
        fused_x=fused[0],
        fused_y=fused[1],
        queue=data.queue(generator, fabric.device) if spec.queue else None,
        weights=spec.weights,
    )
    loss, wins = objective(batch, spec, generator)
    # Gradients are averaged over processes, but each holds only its own rows' part of the sum.
    return loss * fabric.world_size, float(loss.detach()), wins


def _step_seed(seed: int, step: int) -> int:
    return seed * 1_000_003 + step


def _cpu(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu() for name, value in state.items()}


def _nan_message(run: RunFolder, data: TrainingSet, batch: Sequence[Pair], step: int) -> str:
    ids = sorted({data.items[i].id for pair in batch for i in (pair.x, pair.y)})
    named = ", ".join(ids[:6]) + (f" and {len(ids) - 6} more" if len(ids) > 6 else "")
    path = run.root / "nan-batch.txt"
    path.write_text("\n".join(ids) + "\n", "utf-8")
    return (
        f"the loss became NaN at step {step + 1}, on {named} (all in {path}): start again with a "
        "lower --lr or --precision 32, or look at these images"
    )


# --- data -------------------------------------------------------------------------------


def _batches(
    data: TrainingSet, preprocess: Preprocess, spec: DistillSpec, fabric: Any, *, start: int
) -> Iterator[tuple[list[Pair], Tensor]]:
    """Yield each joined batch from step `start` on, with this process's input.

    The input holds the x sides, then the y sides: (2b, 3, h, w), or (2b, f) cached features.
    """
    share = data.plan.batch_size // fabric.world_size
    mine = slice(fabric.global_rank * share, (fabric.global_rank + 1) * share)

    assert spec.epochs is not None
    epochs = spec.epochs

    def pairs() -> Iterator[list[Pair]]:
        size = data.plan.batches_per_epoch
        for epoch in range(start // size, epochs):
            skip = start % size if epoch == start // size else 0
            batches = data.plan.epoch(epoch)
            yield from (batches[number] for number in range(skip, len(batches)))

    if spec.backbone_lr == 0:
        for batch in pairs():
            yield batch, data.features(batch[mine], fabric.device)
        return

    sides = (side for batch in pairs() for side in data.sides(batch[mine]))
    rendered = ordered_map(
        lambda side: data.render(side, preprocess, fabric.device),
        sides,
        workers=spec.workers,
        ahead=4 * share,
    )
    for batch in pairs():
        pixels = np.stack(list(islice(rendered, 2 * share)))
        coloured = data.coloured(pixels, data.sides(batch[mine]), fabric.device)
        yield batch, model_input(preprocess, coloured, fabric.device)
