"""The images that a run with held-out sources never trains on, as it recorded them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from whiten.datasets.collection import Items
from whiten.errors import RunError, one_line
from whiten.runs.folder import RunFolder
from whiten.utils.files import renaming

_PART = "part"


@dataclass(frozen=True)
class Apart:
    """Images that never train.

    Attributes:
        unseen: images of the held-out sources.
        copies: images of other sources that are copies of unseen ones; nothing uses them.
        held_out: images of seen sources that measure the student while it trains.
    """

    unseen: Items
    copies: Items
    held_out: Items

    def write(self, run: RunFolder) -> None:
        """Write it to the run's folder."""
        parts = {"unseen": self.unseen, "copy": self.copies, "held-out": self.held_out}
        tables = [
            pa.table(
                {"id": items.ids, "path": items.paths, "group": items.groups}
                | {_PART: pa.array([name] * len(items), pa.string())}
            )
            for name, items in parts.items()
        ]
        with renaming(run.apart) as partial:
            pq.write_table(pa.concat_tables(tables), partial)

    @classmethod
    def read(cls, run: RunFolder) -> Apart:
        """Read it.

        Raises:
            RunError: the file is missing or damaged.
        """
        try:
            table = pq.read_table(run.apart)
            items = run.located(Items.from_table(table))
            part = np.array(table[_PART].to_pylist(), object)
        except (OSError, KeyError, pa.ArrowException) as error:
            raise RunError(
                f"{run.apart} is missing or damaged ({one_line(error)}), so that unseen images are "
                "not known: restore it, or start again with --overwrite"
            ) from error
        return cls(*(items.take(part == name) for name in ("unseen", "copy", "held-out")))

    def not_in(self, items: Items) -> Items:
        """Return a run's images without those of held-out sources and their copies."""
        rows = [part.by_id.rows(items.ids.to_pylist()) for part in (self.unseen, self.copies)]
        return items.take((rows[0] < 0) & (rows[1] < 0))
