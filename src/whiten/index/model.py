"""The model of an index: open it, and refuse the queries of another one."""

from __future__ import annotations

from whiten.embedding.encoder import Encoder
from whiten.embedding.opening import load
from whiten.errors import ConfigError, StoreError, TeacherError, one_line
from whiten.index.rows import Facts


def can_query(encoder: Encoder, facts: Facts) -> bool:
    """Return whether an encoder's embeddings can query an index, of an earlier version too."""
    return encoder.can_query(facts.model) or encoder.made(facts.uri, facts.model)


def require_model(encoder: Encoder, facts: Facts, place: str) -> None:
    """Refuse the queries of another model.

    Raises:
        StoreError: the index was made with another model.
    """
    if not can_query(encoder, facts):
        raise StoreError(
            f"{place} was made with another model, {facts.name} ({facts.model[:8]}), than "
            f"{encoder.name} ({encoder.fingerprint()[:8]}): query it with that one, or make "
            "another index"
        )


def open_model(facts: Facts, place: str) -> Encoder:
    """Open the encoder that embeds the queries of an index.

    Raises:
        ConfigError: no single URI opens it.
        StoreError: its URI now opens another model.
        TeacherError: it cannot be opened, perhaps as its folder has moved.
    """
    if not facts.uri:
        raise ConfigError(
            f"{place} was made with {facts.name}, which no single URI opens: name the model with "
            "--model"
        )
    try:
        encoder = load(facts.uri)
    except TeacherError as error:
        raise TeacherError(
            f"{place} was made with {facts.name}, which cannot be opened ({one_line(error)}): if "
            "it is elsewhere now, name it with --model"
        ) from error
    require_model(encoder, facts, place)
    return encoder
