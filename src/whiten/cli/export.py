"""The verb `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from whiten.cli.app import Exclude, Include, Json, Quiet, app
from whiten.cli.terminal import list_skipped, print_json, say
from whiten.utils.progress import be_quiet


@app.command
def export(
    images: Path | None = None,
    *,
    model: Annotated[str, Parameter(("--model", "--student"))],
    out: Path,
    format: list[str] | None = None,  # noqa: A002 - the option's name
    precision: list[str] | None = None,
    fold_normalisation: bool = False,
    int8_floor: float = 0.9,
    int8_loss: float = 0.02,
    exclude: Exclude = (),
    include: Include = (),
    workers: int | None = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Export a student to ONNX, OpenVINO or TorchScript, compared with torch and timed.

    Args:
        images: a folder or table of images like those in use. Half of them calibrate int8; the
            other half is held out to compare embeddings, and retrieval if there are groups.
        model: folder of a student, or of its run.
        out: the folder to write; replaces an earlier export.
        format: onnx (the default), openvino, torchscript; one or more.
        precision: fp32 (the default), fp16, bf16 (not with onnx), int8 (not with torchscript);
            one or more.
        fold_normalisation: make the graphs take uint8 RGB pixels and normalise them.
        int8_floor: for int8, minimum mean-centred cosine to torch.
        int8_loss: for int8, maximum loss of mAP, if the images have groups.
        workers: threads that decode images; by default one per core.
    """
    be_quiet(quiet)
    from whiten.export import export as run

    done = run(
        model,
        out,
        formats=_split(format) or ["onnx"],
        precisions=_split(precision) or ["fp32"],
        images=images,
        fold_normalisation=fold_normalisation,
        int8_floor=int8_floor,
        int8_loss=int8_loss,
        exclude=exclude,
        include=include,
        workers=workers,
        show_progress=True,
    )
    if as_json:
        print_json(done.to_json())
        return
    print(*done.lines(), sep="\n")
    print(done.folder)
    for remark in done.left_out:
        say(remark)
    list_skipped(done.skipped)


def _split(names: list[str] | None) -> list[str]:
    return [part for name in names or [] for part in name.split(",") if part]
