"""Facts of an index in Milvus, stored in their own collection.

A text in Milvus has at most 65,535 bytes, so that the facts are cut into pieces. The record that
names the pieces is replaced last: readers get the old facts or the new ones, never a mixture.
"""

from __future__ import annotations

import json
import os
import re

from whiten.errors import StoreError, one_line, refuse_later
from whiten.index.databases.milvus_server import Client
from whiten.index.rows import Facts

FORMAT = 1
_PIECE = 60_000  # characters, all ASCII
_AT_ONCE = 100  # pieces
_HEAD, _SERIALS = "head", "serials"


class MilvusFacts:
    """Reads and writes the facts of an index.

    Attributes:
        rows: name of the collection that holds the rows.
        index: index type of that collection, `flat` or `hnsw`.
        serials: number of serial numbers given to rows so far.
        has_nulls: whether its fields are nullable, see `milvus_rows`.
    """

    def __init__(self, client: Client, name: str, place: str) -> None:
        self._client, self._name, self._place = client, name, place
        self._collection = f"{name}_facts"
        self._pieces: list[str] = []
        self._generation = 0
        self.rows, self.index, self.serials, self.has_nulls = "", "", 0, True

    def new_name(self) -> str:
        """Return a name for a collection of rows that was never used before."""
        return f"{self._name}_{os.urandom(4).hex()}"

    def read(self) -> Facts | None:
        """Read the facts; None if there are none.

        Raises:
            StoreError: the collection holds something else, is damaged, or of another version.
        """
        if not self._is_made():
            return None
        self._client.load_collection(self._collection)
        while True:
            records = self._get([_HEAD, _SERIALS])
            if _HEAD not in records:
                return None
            try:
                head = json.loads(records[_HEAD])
                refuse_later(self._place, "index", head["format"], FORMAT)
                if head["format"] != FORMAT:
                    raise StoreError(
                        f"{self._place} has index format {head['format']!r}, this version reads "
                        f"{FORMAT}: name another collection and index again"
                    )
                pieces = [str(name) for name in head["pieces"]]
                texts = self._get(pieces)
                if len(texts) < len(pieces) and self._get([_HEAD])[_HEAD] != records[_HEAD]:
                    continue  # another process has just replaced them
                facts = Facts.from_json(json.loads("".join(texts[name] for name in pieces)))
                self.rows, self.index = str(head["rows"]), str(head["index"])
                self.has_nulls = bool(head.get("has_nulls", True))
                self._generation = int(head["generation"])
                self.serials = int(json.loads(records[_SERIALS])["next"])
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise StoreError(
                    f"{self._place} is damaged (facts: {one_line(error)}): drop its collections "
                    "and index again"
                ) from error
            self._pieces = pieces
            self._client.load_collection(self.rows)
            return facts

    def _fields(self, name: str) -> set[str]:
        return {field["name"] for field in self._client.describe_collection(name)["fields"]}

    def _get(self, keys: list[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for start in range(0, len(keys), _AT_ONCE):
            some = keys[start : start + _AT_ONCE]
            records = self._client.get(self._collection, ids=some, output_fields=["key", "text"])
            found |= {record["key"]: record["text"] for record in records}
        return found

    def write(self, facts: Facts) -> Facts:
        """Replace the facts, naming the collection of the rows, and return them as `read` would."""
        if not self._is_made():
            self._create()
        text = json.dumps(facts.to_json())
        texts = [text[start : start + _PIECE] for start in range(0, len(text), _PIECE)]
        self._generation += 1
        pieces = [f"facts-{self._generation}-{number}" for number in range(len(texts))]
        for name, piece in zip(pieces, texts, strict=True):
            self._put(name, piece)
        if self.serials == 0:
            self.take_serials(0)
        head = {
            "format": FORMAT,
            "rows": self.rows,
            "index": self.index,
            "generation": self._generation,
            "pieces": pieces,
            "has_nulls": self.has_nulls,
        }
        self._put(_HEAD, json.dumps(head))
        if old := [name for name in self._pieces if name not in pieces]:
            self._client.delete(self._collection, ids=old)
        self._pieces = pieces
        return Facts.from_json(json.loads(text))

    def take_serials(self, count: int) -> int:
        """Reserve serial numbers and return the first; recorded before use, never given twice."""
        first = self.serials
        self.serials += count
        self._put(_SERIALS, json.dumps({"next": self.serials}))
        return first

    def _put(self, key: str, text: str) -> None:
        record = {"key": key, "text": text, "unused": [0.0, 0.0]}
        self._client.upsert(self._collection, data=[record])

    def _is_made(self) -> bool:
        """Return whether the collection is complete: the index is the last step of its creation."""
        name = self._collection
        if not self._client.has_collection(name):
            return False
        if self._fields(name) != {"key", "text", "unused"}:
            raise StoreError(
                f"{self._place}: the collection {name} is of something else: name another one, "
                "DATABASE#NAME"
            )
        return bool(self._client.list_indexes(name))

    def _create(self) -> None:
        from pymilvus import DataType

        if self._client.has_collection(self._collection):
            self._client.drop_collection(self._collection)

        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("key", DataType.VARCHAR, is_primary=True, max_length=200)
        schema.add_field("text", DataType.VARCHAR, max_length=65_535)
        schema.add_field("unused", DataType.FLOAT_VECTOR, dim=2)  # every collection needs one
        index = self._client.prepare_index_params()
        index.add_index("unused", index_type="FLAT", metric_type="IP")
        self._client.create_collection(
            self._collection, schema=schema, index_params=index, consistency_level="Strong"
        )

    def drop(self) -> None:
        """Drop all collections of the index; the facts go last, because they name the rest."""
        self.rows = ""
        self.sweep()
        if self._client.has_collection(self._collection):
            self._client.drop_collection(self._collection)
        self._pieces, self._generation, self.serials, self.index = [], 0, 0, ""

    def sweep(self) -> None:
        """Drop collections of rows that are no longer used, and no others."""
        for name in self._client.list_collections():
            is_like = re.fullmatch(f"{self._name}_[0-9a-f]{{8}}", name) and name != self.rows
            if is_like and {"serial", "content_hash", "stamp", "embedding"} <= self._fields(name):
                self._client.drop_collection(name)
