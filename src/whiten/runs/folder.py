"""The run folder: what lies where, and what is saved so that a killed run goes on.

- config.yaml: the resolved options
- metrics.jsonl: a line a step
- embeddings/: the teachers', cached
- whiteners/: one a teacher
- checkpoints/: last.ckpt, to resume from
- targets/: removed when training ends
- student/: the model, for `whiten.load`
- report.html: what came out
"""

from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from whiten._version import __version__
from whiten.errors import DAMAGED, ConfigError, RunError, one_line
from whiten.runs.spec import DistillSpec
from whiten.utils.files import partial_of, renaming, write_atomically
from whiten.utils.hashing import content_hash


@dataclass(frozen=True)
class RunFolder:
    """Paths inside a run folder."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def checkpoint(self) -> Path:
        return self.root / "checkpoints" / "last.ckpt"

    @property
    def student(self) -> Path:
        return self.root / "student"

    @property
    def embeddings(self) -> Path:
        return self.root / "embeddings"

    @property
    def whiteners(self) -> Path:
        return self.root / "whiteners"

    @property
    def targets(self) -> Path:
        return self.root / "targets"

    @property
    def is_finished(self) -> bool:
        return (self.student / "config.json").is_file()

    def whitener(self, number: int) -> Path:
        """Where the whitener of the n-th teacher is."""
        return self.whiteners / f"{number}.safetensors"

    @property
    def rotation(self) -> Path:
        """Where the PCA of the fused teachers is, if the student has learnt from it."""
        return self.whiteners / "fused.safetensors"

    @property
    def choices(self) -> Path:
        """How the whitenings were chosen; there is none where nothing was left to choose."""
        return self.whiteners / "choices.json"

    def read_config(self) -> tuple[str, DistillSpec]:
        """The images' folder and the options.

        Raises:
            RunError: this is no run folder, or its configuration is damaged.
        """
        try:
            config = yaml.safe_load(self.config.read_text("utf-8"))
            images = config.pop("images")
            config.pop("version")
            if not isinstance(images, str):
                raise ConfigError(f"images must be a path, not {images!r}")
            return images, DistillSpec.from_mapping(config)
        except (FileNotFoundError, NotADirectoryError):
            raise RunError(
                f"{self.root} is not a run folder: start one with "
                f"`whiten distill … --out {self.root}`"
            ) from None
        except (*DAMAGED, yaml.YAMLError, ConfigError) as error:
            raise RunError(
                f"{self.config} is damaged ({one_line(error)}): restore it, or start again with "
                "--overwrite"
            ) from error

    def begin(self, images: str, spec: DistillSpec, *, resume: bool, overwrite: bool) -> None:
        """Make the folder for a new run, or check that a run may go on in it.

        Raises:
            RunError: the folder is in the way, or options differ from those it was begun with.
        """
        if resume and self.checkpoint.exists():
            saved_images, saved = self.read_config()
            changed = [k for k, v in saved.to_mapping().items() if v != spec.to_mapping()[k]]
            if changed or saved_images != images:
                name = changed[0] if changed else "images"
                raise RunError(
                    f"{self.root} was begun with another {name}: resume with the same options, "
                    "or name another --out"
                )
            if self.is_finished:  # and perhaps killed while it tidied up
                shutil.rmtree(self.targets, ignore_errors=True)
            return
        if self.root.exists() and not self.root.is_dir():
            raise RunError(f"{self.root} is a file: name another --out")
        # Until there is a checkpoint nothing but embeddings is done, and they fit any options.
        is_begun = not self.config.exists() or self.checkpoint.exists() or self.is_finished
        if is_begun and not self._is_empty():
            if not overwrite:
                raise RunError(
                    f"{self.root} is not empty: go on with --resume, start again with --overwrite, "
                    "or name another --out"
                )
            if not self.config.exists():
                raise RunError(f"{self.root} is not a run, so --overwrite will not delete it")
            self._clear()
        self.root.mkdir(parents=True, exist_ok=True)
        config = {"images": images, "version": __version__, **spec.to_mapping()}
        write_atomically(self.config, yaml.safe_dump(config, sort_keys=False).encode())

    def _is_empty(self) -> bool:
        """Whether nothing is there but what a run leaves that was killed in its first moment."""
        left = {partial_of(self.config).name}
        return not self.root.is_dir() or {path.name for path in self.root.iterdir()} <= left

    def _clear(self) -> None:
        """Delete a run, in an order in which a killed deletion can be repeated.

        Its student goes first, for that says that the run is finished, and its configuration last,
        for that says that there is a run.
        """
        for path in sorted(self.root.iterdir(), key=lambda path: path != self.student):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path != self.config:
                path.unlink()
        self.config.unlink()

    # --- checkpoints --------------------------------------------------------------------

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint; at every moment a whole one is there.

        Raises:
            RunError: it cannot be written; the one before it stays.
        """
        import torch

        try:
            self.checkpoint.parent.mkdir(exist_ok=True)
            with renaming(self.checkpoint) as partial, partial.open("wb") as file:
                torch.save({**state, "config": self._config_hash()}, file)
        except (OSError, RuntimeError) as error:
            # torch's writer raises an error of its own about whatever stopped its writing.
            cause = error.__context__
            if isinstance(cause, KeyboardInterrupt):
                raise cause from None
            cause = cause if isinstance(cause, OSError) else error
            raise RunError(
                f"cannot write {self.checkpoint} ({one_line(cause)}): make room or give access and "
                "go on with --resume"
            ) from error

    def load_checkpoint(self) -> dict[str, Any]:
        """Read the checkpoint.

        Raises:
            RunError: it is damaged, or the options are no longer those that it was made with.
        """
        import torch

        try:
            with zipfile.ZipFile(self.checkpoint) as file:
                if (part := file.testzip()) is not None:  # torch reads over flipped bits
                    raise ValueError(f"the checksum of {part} is wrong")
            state: dict[str, Any] = torch.load(
                self.checkpoint, map_location="cpu", weights_only=True
            )
            if not {"step", "model", "optimizer", "ema"} <= state.keys():
                raise ValueError("it holds something else")
            config = state.pop("config", None)
        except Exception as error:  # unpicklers raise nearly anything on damaged files
            raise RunError(
                f"{self.checkpoint} is damaged ({one_line(error)}): delete it and run again with "
                "--resume"
            ) from error
        if config not in (None, self._config_hash()):
            raise RunError(
                f"{self.config} has changed since the run was begun: restore it, or start again "
                "with --overwrite"
            )
        return state

    def _config_hash(self) -> str:
        return content_hash(self.config.read_bytes())

    def truncate_metrics(self, step: int) -> None:
        """Forget the steps after a checkpoint; they will be done again."""
        lines = [json.dumps(record) for record in self.read_metrics() if record["step"] <= step]
        write_atomically(self.metrics, "".join(line + "\n" for line in lines).encode())

    def read_metrics(self) -> list[dict[str, Any]]:
        """The records of `metrics.jsonl`; a line cut short by a kill is passed over."""
        records = []
        if self.metrics.exists():
            for line in self.metrics.read_text("utf-8", errors="replace").splitlines():
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if _is_step(record):
                    records.append(record)
        return records


def _is_step(record: Any) -> bool:
    return isinstance(record, dict) and all(
        isinstance(record.get(name), int | float) for name in ("step", "loss")
    )
