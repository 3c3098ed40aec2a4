"""Make strong teachers of the domain: fine-tune the demo's networks on the training groups.

    python studies/finetune_teachers.py --out runs/strong-teachers

Each network is trained whole at 128 px, the resolution at which the demo uses it, with a
supervised contrastive loss over batches of 32 groups of 4 images (Khosla et al. 2020, eq. 2), and
saved as a folder that `whiten:` URIs name. A network that is there already is left alone. On two
CPU cores this takes half an hour; the folders are 10 to 30 MB and stay outside the repository.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from emoji import Split, load_split, mean_average_precision
from torch import Tensor

from whiten.models.card import model_card
from whiten.models.student import StudentNet, build_student, save_student
from whiten.utils.memory import keep_freed_memory
from whiten.views.plan import ViewPlan
from whiten.views.rendering import Preprocess, plan_view, render

NETWORKS = {
    "efficientnet-lite2": "demo:efficientnet-lite2?size=128&fit=squash",
    "mobilenetv2": "demo:mobilenetv2?size=128&fit=squash",
}
DIM, GROUPS, TEMPERATURE = 384, 32, 0.1
# Crops and colours that leave a drawing recognisable; every second image is shown whole.
VIEWS = ViewPlan(scale=(0.6, 1.0), jitter=0.2, grayscale=0.0)


def supervised_contrastive(embeddings: Tensor, labels: Tensor) -> Tensor:
    """Mean over images of -log softmax at its group's other images (Khosla et al. 2020, eq. 2)."""
    unit = F.normalize(embeddings, dim=1)
    logits = (unit @ unit.T / TEMPERATURE).fill_diagonal_(-math.inf)
    same = (labels[:, None] == labels[None]).fill_diagonal_(False)
    scores = logits.log_softmax(1).masked_fill(~same, 0.0)
    return -(scores.sum(1) / same.sum(1)).mean()


def pixels(split: Split, rows: np.ndarray, preprocess: Preprocess, epoch: int | None) -> Tensor:
    """Normalised input of some images; without an epoch they are whole."""
    shown = []
    for row in rows:
        image = split.images[row]
        is_whole = epoch is None or (row + epoch) % 2 == 0
        view = plan_view(VIEWS, split.ids[row], 0 if is_whole else epoch + 1, image.size)
        shown.append(render(image, view, preprocess))
    return torch.from_numpy(preprocess.normalize(np.stack(shown)))


@torch.inference_mode()
def embed(net: StudentNet, split: Split, preprocess: Preprocess) -> np.ndarray:
    net.eval()
    blocks = np.array_split(np.arange(len(split.ids)), math.ceil(len(split.ids) / 32))
    out = [F.normalize(net(pixels(split, rows, preprocess, None)), dim=1) for rows in blocks]
    return torch.cat(out).numpy()


def fine_tune(uri: str, out: Path, *, epochs: int, lr: float, seed: int) -> None:
    torch.manual_seed(seed)
    net, config = build_student(uri, dim=DIM, pool="avg")
    train, validation = load_split("train"), load_split("val")
    members = [np.flatnonzero(train.groups == group) for group in range(train.groups.max() + 1)]
    steps = len(members) // GROUPS
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total_steps=epochs * steps, pct_start=0.1
    )
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(members))
        total = 0.0
        net.train()
        for step in range(steps):
            rows = np.concatenate([members[g] for g in order[step * GROUPS : (step + 1) * GROUPS]])
            loss = supervised_contrastive(
                net(pixels(train, rows, config.preprocess, epoch)),
                torch.from_numpy(train.groups[rows]),
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        score = mean_average_precision(embed(net, validation, config.preprocess), validation.groups)
        line = f"{uri} epoch {epoch + 1}/{epochs}: loss {total / steps:.3f}, validation {score:.4f}"
        print(line, file=sys.stderr, flush=True)
    save_student(net.eval(), config, out, model_card(config))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=Path("runs/strong-teachers"))
    parser.add_argument("--only", choices=NETWORKS, help="one network, to run two at once")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    for name, uri in NETWORKS.items():
        folder = options.out / name
        if options.only in (None, name) and not (folder / "config.json").exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            fine_tune(uri, folder, epochs=options.epochs, lr=options.lr, seed=0)


if __name__ == "__main__":
    main()
