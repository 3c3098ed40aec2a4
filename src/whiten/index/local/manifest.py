"""The state of an index in a folder: which files belong to it, and how it answers."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from whiten.errors import DAMAGED, ConfigError, StoreError
from whiten.index.local.storage.state import Storage
from whiten.index.local.tuning import Tuning
from whiten.index.rows import Facts

FORMAT = 3
CODED_FORMAT = 4  # with a storage; float32 is written as before, so that earlier versions read it
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Part:
    """A segment in the manifest.

    Attributes:
        name: of its folder.
        count: of its rows.
        gone: file with those that are gone, packed bits; "" is none.
        fast: folder with what answers faster than a scan; "" is none.
    """

    name: str
    count: int
    gone: str = ""
    fast: str = ""


@dataclass(frozen=True)
class Manifest:
    """The state of an index; `generation` grows with every change.

    Attributes:
        tuning: how it answers, and what was measured; None until that was chosen.
        storage: how its vectors are stored.
    """

    generation: int
    facts: Facts
    parts: tuple[Part, ...]
    tuning: Tuning | None = None
    storage: Storage = field(default_factory=Storage)

    def to_json(self) -> dict[str, Any]:
        is_coded = self.storage != Storage()
        return ({"storage": self.storage.to_json()} if is_coded else {}) | {
            "format": CODED_FORMAT if is_coded else FORMAT,
            "generation": self.generation,
            "facts": self.facts.to_json(),
            "parts": [asdict(part) for part in self.parts],
            "tuning": None if self.tuning is None else asdict(self.tuning),
        }

    @classmethod
    def read(cls, root: Path) -> Manifest | None:
        """Of the index in a folder; None where there is none.

        Raises:
            StoreError: it is damaged, or of another format.
        """
        path = root / MANIFEST
        try:
            facts = json.loads(path.read_text())
            if facts["format"] not in (FORMAT, CODED_FORMAT):
                raise StoreError(
                    f"{root} has index format {facts['format']!r}, this version reads {FORMAT} and "
                    f"{CODED_FORMAT}: delete it and index again"
                )
            is_coded = facts["format"] == CODED_FORMAT
            tuning = facts.get("tuning")
            return cls(
                int(facts["generation"]),
                Facts.from_json(facts["facts"]),
                tuple(
                    Part(
                        str(part["name"]),
                        int(part["count"]),
                        str(part["gone"]),
                        str(part.get("fast", "")),
                    )
                    for part in facts["parts"]
                ),
                None if tuning is None else Tuning.from_json(tuning),
                Storage.from_json(facts["storage"]) if is_coded else Storage(),
            )
        except FileNotFoundError:
            return None
        except (*DAMAGED, ConfigError) as error:
            raise StoreError(
                f"{path} is damaged ({error}): delete {root} and index again"
            ) from error
