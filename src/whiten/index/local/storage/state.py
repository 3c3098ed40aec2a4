"""The storage of an index as recorded in its manifest, and the file of its codec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from whiten.errors import DAMAGED, StoreError, WhitenError, one_line
from whiten.index.local.storage.codec import Codec
from whiten.index.local.storage.coded import Coding
from whiten.index.local.storage.kinds import BASE, from_state, parse_storage
from whiten.index.local.storage.loss import Cost
from whiten.utils.files import flush, load_sealed, save_sealed


@dataclass(frozen=True)
class Storage:
    """Storage of an index's vectors.

    Attributes:
        name: float32, or a kind of `whiten.index.local.storage.kinds`, perhaps with `+float32`.
        codec: file of the fitted codec; "" for float32.
        loss: cost measured when the codec was fitted; None if there were too few vectors.
    """

    name: str = BASE
    codec: str = ""
    loss: Cost | None = None

    @property
    def has_vectors(self) -> bool:
        """Return whether the float32 vectors are stored."""
        return self.name == BASE or parse_storage(self.name)[1]

    @property
    def codes(self) -> str:
        """Name of the file with a segment's codes; "" for float32."""
        return self.codec and f"{Path(self.codec).stem}.codes"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Storage:
        """Read the state; raises KeyError, TypeError, ValueError or ConfigError otherwise."""
        parse_storage(facts["name"])
        loss = facts["loss"]
        return cls(
            str(facts["name"]), str(facts["codec"]), None if loss is None else Cost.from_json(loss)
        )

    def open(self, root: Path, dim: int) -> Coding | None:
        """Open the codec; None for float32.

        Raises:
            StoreError: the codec is damaged.
        """
        if not self.codec:
            return None
        kind, keeps_vectors = parse_storage(self.name)
        try:
            facts, state = load_sealed(root / self.codec)
            if facts != {"kind": kind, "dim": dim}:
                raise ValueError("it is of other codes")
            return Coding(from_state(kind, dim, state), self.codes, keeps_vectors)
        except (OSError, *DAMAGED, WhitenError) as error:
            raise StoreError(
                f"{root / self.codec} is damaged ({one_line(error)}): delete {root} and index again"
            ) from error


def save_codec(path: Path, codec: Codec) -> None:
    """Write a fitted codec; it is on disk when this returns."""
    save_sealed(path, codec.state(), {"kind": codec.kind, "dim": codec.dim})
    with path.open("rb") as file:
        flush(file.fileno())
