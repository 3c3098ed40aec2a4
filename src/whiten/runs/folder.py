"""The run folder: its files, and the state from which a killed run resumes.

- config.yaml: the resolved options
- metrics.jsonl: one line per step
- log.txt: progress, choices and warnings, with the time
- embeddings/: the teachers', cached
- whiteners/: one per teacher
- checkpoints/: last.ckpt, to resume from
- apart.parquet: with held-out sources, the images that never train
- start.safetensors: the projection of a start in closed form
- targets/: removed when training ends
- student/: the model, for `whiten.load`
- report.html: the results
"""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from whiten._version import __version__
from whiten.datasets.collection import Items
from whiten.errors import DAMAGED, UPGRADE, ConfigError, RunError, one_line
from whiten.models.student_folder import RUN_CONFIG
from whiten.models.uri import lasting
from whiten.runs.paths import begun_in, located
from whiten.runs.spec import EPOCHS, HARDWARE, PLANNED, DistillSpec
from whiten.storage.services import refuse_as_output
from whiten.utils.files import partial_of, renaming, write_atomically
from whiten.utils.hashing import content_hash
from whiten.utils.urls import absolute


@dataclass(frozen=True)
class RunFolder:
    """Paths inside a run folder."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / RUN_CONFIG

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def log(self) -> Path:
        """Progress, choices, warnings and skipped images, a line each, with the time."""
        return self.root / "log.txt"

    @property
    def checkpoint(self) -> Path:
        return self.root / "checkpoints" / "last.ckpt"

    @property
    def student(self) -> Path:
        return self.root / "student"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

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
    def apart(self) -> Path:
        """Path of the images that never train; the file is missing without held-out sources."""
        return self.root / "apart.parquet"

    @property
    def start(self) -> Path:
        """Path of the projection of a start in closed form; the file is missing without one."""
        return self.root / "start.safetensors"

    @property
    def is_finished(self) -> bool:
        return (self.student / "config.json").is_file()

    def whitener(self, number: int) -> Path:
        """Return the path of the n-th teacher's whitener."""
        return self.whiteners / f"{number}.safetensors"

    @property
    def rotation(self) -> Path:
        """Path of the PCA of the fused teachers, if the student learns from it."""
        return self.whiteners / "fused.safetensors"

    @property
    def choices(self) -> Path:
        """Path of the whitenings' choices; the file is missing if there was nothing to choose."""
        return self.whiteners / "choices.json"

    @property
    def weights(self) -> Path:
        """Path of the weights of the teachers; the file is missing if they are equal."""
        return self.whiteners / "weights.json"

    def read_weights(self) -> list[float] | None:
        """Return the weights of the teachers, with a mean of 1; None if they are equal.

        Raises:
            RunError: the file is damaged.
        """
        if not self.weights.exists():
            return None
        try:
            return [float(weight) for weight in json.loads(self.weights.read_text())]
        except (OSError, ValueError, TypeError) as error:
            raise RunError(
                f"{self.weights} is damaged ({one_line(error)}): distil again or restore it"
            ) from error

    def read_config(self) -> tuple[str, DistillSpec]:
        """Return the images' folder and the options.

        Raises:
            RunError: this is no run folder, or its configuration is damaged.
        """
        written_by = ""
        try:
            config = located(yaml.safe_load(self.config.read_text("utf-8")))
            written_by = str(config.pop("version"))
            images, _ = config.pop("images"), config.pop("cache", None)
            if not isinstance(images, str):
                raise ConfigError(f"images must be a path, not {images!r}")
            return images, DistillSpec.from_mapping(config)
        except (FileNotFoundError, NotADirectoryError):
            raise RunError(
                f"{self.root} is not a run folder: start one with "
                f"`whiten distill … --out {self.root}`"
            ) from None
        except (*DAMAGED, yaml.YAMLError, ConfigError) as error:
            if _is_later(written_by):
                raise RunError(
                    f"{self.root} was written by version {written_by}, and this is {__version__}: "
                    f"it is of {UPGRADE}"
                ) from error
            raise RunError(
                f"{self.config} is damaged ({one_line(error)}): restore it, or start again with "
                "--overwrite"
            ) from error

    def located(self, items: Items) -> Items:
        """Return images that the run recorded, with paths as named from the current folder."""
        try:
            folder = begun_in(yaml.safe_load(self.config.read_text("utf-8")))
        except (*DAMAGED, yaml.YAMLError):  # `read_config` says so
            return items
        return items if folder is None else items.under(folder)

    @property
    def cache(self) -> Path:
        """Folder of the embeddings of the run's own images: where it was told to keep them, unless
        that is gone, or inside the run."""
        try:
            named = yaml.safe_load(self.config.read_text("utf-8"))["cache"]
            return Path(named) if Path(named).is_dir() else self.embeddings
        except (*DAMAGED, yaml.YAMLError):  # none was named; `read_config` says what is damaged
            return self.embeddings

    def read_teachers(self) -> list[str]:
        """Return the teachers' fingerprints that the run recorded; [] before its training."""
        for path in (self.student / "config.json", self.targets / "ready.json"):
            try:
                return [known["fingerprint"] for known in json.loads(path.read_text())["teachers"]]
            except DAMAGED:  # missing, too; opening the student says what is wrong with it
                continue
        return []

    def begin(
        self,
        images: str,
        spec: DistillSpec,
        cache: Path | None = None,
        *,
        resume: bool,
        overwrite: bool,
    ) -> DistillSpec:
        """Create the folder for a new run, or check that a run can be resumed in it.

        Args:
            cache: folder of the embeddings, which the run's report and its resumption use again; by
                default inside the run.

        Returns:
            The options, with what an earlier start of the run has planned; those of the hardware as
            they are given now.

        Raises:
            RunError: the folder is occupied, or options differ from the run's own.
        """
        refuse_as_output(self.root, "a run")
        if resume and (self.checkpoint.exists() or self.is_finished):
            begun_with = self.read_config()
            if changed := _changed(begun_with, (images, spec)):
                raise RunError(
                    f"{self.root} was begun with another {changed[0]}: resume with the same "
                    "options, or name another --out"
                )
            saved = begun_with[1]
            if self.is_finished:  # and perhaps killed while it tidied up
                shutil.rmtree(self.targets, ignore_errors=True)
            now = {name: getattr(spec, name) for name in HARDWARE}  # None is what the run planned
            return replace(
                saved, **{name: value for name, value in now.items() if value is not None}
            )
        if self.root.exists() and not self.root.is_dir():
            raise RunError(f"{self.root} is a file: name another --out")
        # Before the first checkpoint only embeddings exist, which suit any options.
        is_begun = not self.config.exists() or self.checkpoint.exists() or self.is_finished
        if is_begun and not self._is_empty():
            if resume:
                raise RunError(f"{self.root} holds no run to go on with: name another --out")
            if not overwrite:
                raise RunError(
                    f"{self.root} is not empty: go on with --resume, start again with --overwrite, "
                    "or name another --out"
                )
            if not self.config.exists():
                raise RunError(f"{self.root} is not a run, so --overwrite will not delete it")
            self._clear()
        self.root.mkdir(parents=True, exist_ok=True)
        spec = self._planned(images, spec)
        self.write_config(images, spec, cache)
        return spec

    def _planned(self, images: str, spec: DistillSpec) -> DistillSpec:
        """Return the options with the plan of a start that was killed before its checkpoint."""
        if spec.budget is None or not self.config.exists():
            return spec
        try:
            begun_with = self.read_config()
        except RunError:  # it is about to be replaced
            return spec
        return spec if _changed(begun_with, (images, spec)) else begun_with[1]

    def write_config(self, images: str, spec: DistillSpec, cache: Path | None) -> None:
        """Write the options, all that `read_config` and `cache` read."""
        config = {"images": images, "version": __version__, **spec.to_mapping()}
        if _comparable(images, spec) != {**spec.to_mapping(), "images": images}:
            config["folder"] = str(Path.cwd())  # where its relative paths lead from
        if cache is not None and cache != self.embeddings:
            config["cache"] = str(cache.absolute())
        write_atomically(self.config, yaml.safe_dump(config, sort_keys=False).encode())

    def _is_empty(self) -> bool:
        """Return whether the folder is empty, except for traces of a run killed at its start."""
        left = {partial_of(self.config).name}
        return not self.root.is_dir() or {path.name for path in self.root.iterdir()} <= left

    def _clear(self) -> None:
        """Delete a run, in an order that allows a killed deletion to be repeated.

        The student goes first, because it marks the run as finished, and the configuration last,
        because it marks the folder as a run.
        """
        for path in sorted(self.root.iterdir(), key=lambda path: path != self.student):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path != self.config:
                path.unlink()
        self.config.unlink()

    # --- checkpoints --------------------------------------------------------------------

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint atomically.

        Raises:
            RunError: it cannot be written; the previous one stays.
        """
        import torch

        try:
            self.checkpoint.parent.mkdir(exist_ok=True)
            with renaming(self.checkpoint) as partial, partial.open("wb") as file:
                torch.save({**state, "config": self._config_hash()}, file)
        except (OSError, RuntimeError) as error:
            # torch's writer hides the cause behind its own error.
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
            RunError: it is damaged, or the options have changed since.
        """
        import torch

        try:
            with zipfile.ZipFile(self.checkpoint) as file:
                if (part := file.testzip()) is not None:  # torch does not notice flipped bits
                    raise ValueError(f"the checksum of {part} is wrong")
            state: dict[str, Any] = torch.load(
                self.checkpoint, map_location="cpu", weights_only=True
            )
            if not {"step", "model", "optimizer", "ema"} <= state.keys():
                raise ValueError("it holds something else")
            config = state.pop("config", None)
        except Exception as error:  # unpicklers raise almost anything on damaged files
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
        """Remove the steps after a checkpoint; they will be repeated."""
        lines = [json.dumps(record) for record in self.read_metrics() if record["step"] <= step]
        write_atomically(self.metrics, "".join(line + "\n" for line in lines).encode())

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the records of `metrics.jsonl`, skipping a line cut short by a kill."""
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


def _changed(saved: tuple[str, DistillSpec], given: tuple[str, DistillSpec]) -> list[str]:
    """Return what decides what a run learns, and differs from images and options given now."""
    before, wanted = _comparable(*saved), _comparable(*given)
    open_ = {name for name in PLANNED if wanted[name] is None}
    if saved[1].budget is None:  # versions before 0.2 recorded the default
        open_ = {"epochs"} if saved[1].epochs == EPOCHS and wanted["epochs"] is None else set()
    open_ |= HARDWARE
    return [name for name in before if before[name] != wanted[name] and name not in open_]


def _comparable(images: str, spec: DistillSpec) -> dict[str, Any]:
    """Return images and options, with paths that do not depend on the current folder."""
    return {
        **spec.to_mapping(),
        "images": absolute(images),
        "unlabelled": list(map(absolute, spec.unlabelled)),
        "teachers": list(map(lasting, spec.teachers)),
        "student": lasting(spec.student),
    }


def _is_later(version: str) -> bool:
    """Return whether a version of this library, such as 1.10.0, is later than this one."""

    def numbers(text: str) -> list[int]:
        return [int(part) for part in re.findall(r"\d+", text)]

    return numbers(version) > numbers(__version__)


def _is_step(record: Any) -> bool:
    return isinstance(record, dict) and all(
        isinstance(record.get(name), int | float) for name in ("step", "loss")
    )
