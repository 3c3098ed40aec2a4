"""Read a student's folder without torch: its configuration, and the hash of its weights."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whiten.errors import DAMAGED, ConfigError, TeacherError, one_line, refuse_later
from whiten.models.uri import Pool
from whiten.utils.hashing import fingerprint
from whiten.utils.validation import check_types
from whiten.views.rendering import Preprocess

FORMAT = 2  # format 1 had no checksum
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
RUN_CONFIG = "config.yaml"  # of a run, whose folder holds that of its student


@dataclass(frozen=True)
class StudentConfig:
    """Everything needed to rebuild the network, and its origin.

    Attributes:
        architecture: timm name of the backbone.
        pool: auto, gem, gem-fixed, avg or stages; see `StudentNet`.
        dim: embedding dimension.
        preprocess: preprocessing of the input.
        backbone: URI of the backbone's weights.
        backbone_licence: licence of those weights.
        teachers: uri, fingerprint and licence of each teacher.
        training: summary of the run.
        compatible_with: fingerprint of the encoder of a gallery that it can query besides its own.
    """

    architecture: str
    pool: Pool
    dim: int
    preprocess: Preprocess
    backbone: str = ""
    backbone_licence: str = "unknown"
    teachers: list[dict[str, str]] = field(default_factory=list)
    training: dict[str, Any] = field(default_factory=dict)
    compatible_with: str | None = None

    @property
    def licence(self) -> str:
        """Licences of the backbone and the teachers."""
        licences = {self.backbone_licence, *(t.get("licence", "unknown") for t in self.teachers)}
        return " + ".join(sorted(licences))

    @property
    def galleries(self) -> tuple[str, ...]:
        """Galleries that it can query besides its own."""
        return (self.compatible_with,) if self.compatible_with else ()


@dataclass(frozen=True)
class StudentFiles:
    """The content of a student's folder.

    Attributes:
        folder: the folder.
        config: content of `config.json`.
        weights: content of `model.safetensors`.
        weights_hash: what `hash_state` returns for these weights.
    """

    folder: Path
    config: StudentConfig
    weights: bytes
    weights_hash: str


def read_student(folder: Path) -> StudentFiles:
    """Read and check a student's folder.

    Raises:
        TeacherError: the folder is missing, incomplete, damaged or of a later format.
    """
    from safetensors import SafetensorError, deserialize

    try:
        facts = json.loads((folder / CONFIG).read_text("utf-8"))
        refuse_later(folder, "student", facts["format"], 1, FORMAT, error=TeacherError)
        weights = (folder / WEIGHTS).read_bytes()
        hashed = _hash_tensors(deserialize(weights))  # type: ignore[no-untyped-call]
        if facts["format"] not in (1, FORMAT):
            raise ValueError(f"its format is {facts['format']!r}")
        if facts["format"] > 1 and facts.pop("checksum") != checksum(facts, hashed):
            raise ValueError("its content does not have the checksum it was saved with")
        del facts["format"]
        preprocess = Preprocess.from_mapping(facts.pop("preprocess"))
        config = StudentConfig(preprocess=preprocess, **facts)
        check_types(config.preprocess)
        check_types(config)
    except FileNotFoundError as error:
        run = folder.parent if folder.name == "student" else folder
        if not (folder / CONFIG).exists() and (run / RUN_CONFIG).is_file():
            raise TeacherError(
                f"{run} has no student, as it is not finished: go on with "
                f"`whiten distill --out {run} --resume`"
            ) from error
        raise TeacherError(
            f"{folder} is not a student folder, it lacks {Path(error.filename).name}: "
            "name RUN/student of a finished run"
        ) from error
    except (*DAMAGED, SafetensorError, ConfigError) as error:
        raise TeacherError(
            f"{folder} is damaged ({one_line(error)}): distil again or restore it"
        ) from error
    return StudentFiles(folder, config, weights, hashed)


def facts_of(config: StudentConfig, weights_hash: str) -> dict[str, Any]:
    """Return the content of `config.json`."""
    facts = json.loads(json.dumps({"format": FORMAT, **dataclasses.asdict(config)}))
    return {**facts, "checksum": checksum(facts, weights_hash)}


def checksum(facts: dict[str, Any], weights_hash: str) -> str:
    """Return the checksum of the student: it detects flipped bits, which embed slightly wrong."""
    return fingerprint([facts, weights_hash])


# Names of types in safetensors -> in torch, which hashes of weights hold.
_TYPES = {
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    "BF16": "bfloat16",
    "U8": "uint8",
    "BOOL": "bool",
}


def _hash_tensors(tensors: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """Hash a file's tensors as `whiten.models.weights.hash_state` does."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        kind = _TYPES[tensor["dtype"]]
        digest.update(f"{name}|{tuple(tensor['shape'])}|torch.{kind}|".encode())
        digest.update(tensor["data"])
    return digest.hexdigest()


def student_name(folder: Path) -> str:
    """Return the name of the run that made the student, or the folder's own."""
    own = folder.resolve()
    return own.parent.name if own.name == "student" else own.name
