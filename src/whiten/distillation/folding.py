"""Fold frozen batch normalisation into the convolutions before it, while a network trains.

With frozen statistics a normalisation is an affine map of each channel: γ/σ·(x - μ) + β. Applied to
the weights of the convolution, it saves a pass over the activations, and the copy of them that its
own gradient would need: a quarter to a third of the memory of training. Gradients are the same, up
to rounding, for the weights are folded anew in each forward pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_TOLERANCE = 1e-3  # of an embedding, relative to its largest element


@contextmanager
def folded_norms(net: nn.Module, size: tuple[int, int]) -> Iterator[int]:
    """Fold while the block runs; yield how many normalisations were folded.

    A network in which a convolution feeds more than its normalisation is left alone.

    Args:
        net: maps (n, 3, h, w) to (n, dim); normalisations in training mode stay as they are.
        size: (h, w) of its input.
    """
    frozen = [module for module in net.modules() if _is_frozen(module)]
    pairs: Pairs = []
    if frozen:
        with torch.no_grad(), _evaluating(net):
            pairs = _fold(net, frozen, size)
    try:
        yield len(pairs)
    finally:
        _restore(pairs)


Pairs = list[tuple[nn.Conv2d, _BatchNorm]]


@contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    """Switch random layers off, and restore each module's own mode."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for module, is_training in modes.items():
            module.training = is_training


def _fold(net: nn.Module, frozen: list[_BatchNorm], size: tuple[int, int]) -> Pairs:
    """Fold, and return what was folded: nothing if the embedding would change."""
    generator = torch.Generator().manual_seed(0)
    example = torch.rand(1, 3, *size, generator=generator).to(next(net.parameters()).device)
    pairs, expected = _pairs(net, frozen, example)
    for conv, norm in pairs:
        conv.forward = partial(_convolve, conv, norm)  # type: ignore[method-assign]
        norm.forward = partial(_activate, norm)  # type: ignore[method-assign]
    if (net(example) - expected).abs().max() <= _TOLERANCE * expected.abs().max():
        return pairs
    _restore(pairs)
    return []


def _pairs(net: nn.Module, frozen: list[_BatchNorm], example: Tensor) -> tuple[Pairs, Tensor]:
    """Return each convolution whose output a normalisation takes, and the network's output."""
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # holds the outputs, so that no id is used twice
    pairs: Pairs = []
    runs: Counter[nn.Module] = Counter()

    def convolved(conv: nn.Module, _: object, out: Tensor) -> None:
        assert isinstance(conv, nn.Conv2d)
        made[id(out)] = (conv, out)
        runs[conv] += 1

    def normalises(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, _BatchNorm)
        runs[norm] += 1
        if id(inputs[0]) in made:
            pairs.append((made[id(inputs[0])][0], norm))

    convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    hooks = [
        *(conv.register_forward_hook(convolved) for conv in convolutions),
        *(norm.register_forward_pre_hook(normalises) for norm in frozen),
    ]
    try:
        out: Tensor = net(example)
    finally:
        for hook in hooks:
            hook.remove()
    # Weights that are used twice, and what only looks alike, stay as they are.
    takers = Counter(conv for conv, _ in pairs)
    once = [pair for pair in pairs if runs[pair[0]] == runs[pair[1]] == takers[pair[0]] == 1]
    return once, out


def _is_frozen(module: nn.Module) -> TypeGuard[_BatchNorm]:
    """Return whether a module is a normalisation that can be folded, alone or with timm's own."""
    if not isinstance(module, _BatchNorm) or module.training or not module.affine:
        return False
    is_known = type(module) is nn.BatchNorm2d or type(module).__name__ == "BatchNormAct2d"
    return is_known and module.running_var is not None


def _convolve(conv: nn.Conv2d, norm: _BatchNorm, inputs: Tensor) -> Tensor:
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * scale
    if conv.bias is not None:
        shift = shift + conv.bias * (scale - 1)  # the convolution adds its bias itself
    # An attribute hides the parameter of its name; kinds of convolution pad in ways of their own.
    vars(conv)["weight"] = conv.weight * scale[:, None, None, None]
    try:
        out = type(conv).forward(conv, inputs)
    finally:
        del vars(conv)["weight"]
    return out + shift.to(out.dtype)[:, None, None]


def _activate(norm: _BatchNorm, inputs: Tensor) -> Tensor:
    """Return what a folded normalisation does besides: in timm an activation."""
    if type(norm) is nn.BatchNorm2d:
        return inputs
    return cast(Any, norm).act(cast(Any, norm).drop(inputs))  # type: ignore[no-any-return]


def _restore(pairs: Pairs) -> None:
    for module in (module for pair in pairs for module in pair):
        vars(module).pop("forward", None)
