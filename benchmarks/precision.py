"""One training step on this CPU in float32 and in bfloat16: which is faster depends on the network.

    python benchmarks/precision.py

Prints JSON: median milliseconds an image of forward and backward, interleaved, and the ratio. This
is what the rule in `whiten.devices.computes_faster_in_bf16` rests on.
"""

from __future__ import annotations

import json
import statistics
import time

import timm
import torch

from whiten.allocator import keep_freed_memory
from whiten.devices import computes_bf16, computes_faster_in_bf16

NETWORKS = ("resnet18", "tf_efficientnet_lite0", "mobilenetv2_100")
BATCH, SIDE, ROUNDS = 64, 64, 5


def step(model: torch.nn.Module, images: torch.Tensor, bf16: bool) -> float:
    """Milliseconds an image."""
    began = time.perf_counter()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        loss = model(images).float().square().mean()
    loss.backward()
    return 1000 * (time.perf_counter() - began) / len(images)


def main() -> None:
    keep_freed_memory()
    rows = []
    for name in NETWORKS:
        model = timm.create_model(name, pretrained=False, num_classes=0)
        model = model.to(memory_format=torch.channels_last).train()
        images = torch.randn(BATCH, 3, SIDE, SIDE).to(memory_format=torch.channels_last)
        times: dict[bool, list[float]] = {False: [], True: []}
        for round_ in range(ROUNDS + 1):
            for bf16 in (False, True):
                milliseconds = step(model, images, bf16)
                if round_:  # the first one warms up
                    times[bf16].append(milliseconds)
        full, half = (statistics.median(times[bf16]) for bf16 in (False, True))
        rows.append(
            {
                "network": name,
                "float32_ms": round(full, 2),
                "bfloat16_ms": round(half, 2),
                "speedup_of_bfloat16": round(full / half, 2),
                "whiten_uses_bfloat16": computes_faster_in_bf16(model, "cpu"),
            }
        )
    facts = {"threads": torch.get_num_threads(), "cpu_has_bfloat16": computes_bf16("cpu")}
    print(json.dumps({**facts, "batch": BATCH, "side": SIDE, "steps": rows}, indent=2))


if __name__ == "__main__":
    main()
