"""Export: the student in the form that it is deployed in."""

from __future__ import annotations

from pathlib import Path

from whiten.cli.app import Json, app
from whiten.cli.terminal import list_skipped, print_json, say


@app.command
def export(
    student: str,
    /,
    *,
    out: Path,
    format: list[str] | None = None,  # noqa: A002 - the option's name
    precision: list[str] | None = None,
    images: Path | None = None,
    fold_normalisation: bool = False,
    int8_floor: float = 0.9,
    int8_loss: float = 0.02,
    workers: int | None = None,
    as_json: Json = False,
) -> None:
    """Export a student to ONNX, OpenVINO or TorchScript, compared with torch and timed.

    Args:
        student: the student's folder, or its run's.
        out: the folder to write; an earlier export there is replaced.
        format: onnx (the default), openvino or torchscript; several may follow each other.
        precision: fp32 (the default), fp16, bf16 (not with onnx) or int8 (not with
            torchscript); likewise.
        images: a folder or table of images like those in use: half of them calibrate int8, on the
            others embeddings are compared, and retrieval where they have groups.
        fold_normalisation: the graphs take uint8 RGB pixels and normalise them.
        int8_floor: the least mean-centred cosine to torch that int8 may have.
        int8_loss: the most mAP that int8 may lose, where images have groups.
        workers: threads that decode images; by default one for each core.
        as_json: print JSON.
    """
    from whiten.export import export as run

    done = run(
        student,
        out,
        formats=_split(format) or ["onnx"],
        precisions=_split(precision) or ["fp32"],
        images=images,
        fold_normalisation=fold_normalisation,
        int8_floor=int8_floor,
        int8_loss=int8_loss,
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
