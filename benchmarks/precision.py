"""One training step on this CPU in float32 and in bfloat16: which is faster depends on the network.

    python benchmarks/precision.py --out benchmarks/results/precision.json

Forward and backward of a batch, in turns. This is what the rule in
`whiten.utils.devices.computes_faster_in_bf16` rests on, whose choice is marked.
"""

from __future__ import annotations

import timm
import torch
from side_by_side import Report, arguments, take_turns

from whiten.utils.devices import computes_bf16, computes_faster_in_bf16
from whiten.utils.memory import keep_freed_memory

NETWORKS = ("resnet18", "tf_efficientnet_lite0", "mobilenetv2_100")
BATCH, SIDE, ROUNDS = 64, 64, 5


def step(model: torch.nn.Module, images: torch.Tensor, bf16: bool) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        loss = model(images).float().square().mean()
    loss.backward()


def main() -> None:
    options = arguments(__doc__).parse_args()
    batch, rounds = (4, 1) if options.quick else (BATCH, ROUNDS)
    keep_freed_memory()
    facts = {"threads": torch.get_num_threads(), "cpu_has_bfloat16": computes_bf16("cpu")}
    report = Report("precision", **facts)
    for name in NETWORKS:
        model = timm.create_model(name, pretrained=False, num_classes=0)
        model = model.to(memory_format=torch.channels_last).train()
        images = torch.randn(batch, 3, SIDE, SIDE).to(memory_format=torch.channels_last)
        ways = {
            "float32": lambda model=model, images=images: step(model, images, bf16=False),
            "bfloat16": lambda model=model, images=images: step(model, images, bf16=True),
        }
        chosen = "bfloat16" if computes_faster_in_bf16(model, "cpu") else "float32"
        setting = f"{name}, a step of {batch} images of {SIDE} px"
        report.add(take_turns(setting, ways, ours=chosen, rounds=rounds))
    report.finish(options.out)


if __name__ == "__main__":
    main()
