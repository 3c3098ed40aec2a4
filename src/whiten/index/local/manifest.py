"""The state of an index in a folder: its files, search kind and storage."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from whiten.errors import DAMAGED, ConfigError, StoreError, one_line, refuse_later
from whiten.index.local.storage.state import Storage
from whiten.index.local.tuning import Tuning
from whiten.index.rows import Facts

FORMAT = 3
CODED_FORMAT = 4  # with a storage; float32 keeps the older format, so that earlier versions read it
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Part:
    """A segment, as named by the manifest.

    Attributes:
        name: folder of the segment.
        count: number of rows.
        gone: file with the mask of removed rows, packed bits; "" if there are none.
        fast: folder of the fast search; "" if there is none.
        lost: stored columns whose values no longer count: they were dropped, or changed their kind.
    """

    name: str
    count: int
    gone: str = ""
    fast: str = ""
    lost: tuple[str, ...] = ()


def _part_to_json(part: Part) -> dict[str, Any]:
    """Return the fields of a part; earlier versions read those without lost columns."""
    return {name: value for name, value in asdict(part).items() if name != "lost" or value}


@dataclass(frozen=True)
class Manifest:
    """The state of an index; `generation` grows with every change.

    Attributes:
        tuning: search kind and its measurements; None until chosen.
        storage: storage kind of the vectors.
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
            "parts": [_part_to_json(part) for part in self.parts],
            "tuning": None if self.tuning is None else asdict(self.tuning),
        }

    @classmethod
    def read(cls, root: Path) -> Manifest | None:
        """Read the manifest of a folder; None if there is none.

        Raises:
            StoreError: the manifest is damaged, or of another format.
        """
        path = root / MANIFEST
        try:
            facts = json.loads(path.read_text())
            refuse_later(root, "index", facts["format"], FORMAT, CODED_FORMAT)
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
                        tuple(str(name) for name in part.get("lost", ())),
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
                f"{path} is damaged ({one_line(error)}): delete {root} and index again"
            ) from error


def small_parts(counts: Sequence[int]) -> list[int]:
    """Return the segments to merge when there are too many, never the largest one.

    These are the two smallest, and the next ones as long as they are not larger than all before
    them: so each row is copied a logarithmic number of times, however many changes follow.
    """
    numbers = sorted(range(len(counts)), key=lambda number: counts[number])[:-1]
    taken, total = numbers[:2], sum(counts[number] for number in numbers[:2])
    for number in numbers[2:]:
        if counts[number] > total:
            break
        taken.append(number)
        total += counts[number]
    return sorted(taken)
