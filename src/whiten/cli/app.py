"""The command-line application, and the options that its verbs share."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import unquote

from cyclopts import App, ArgumentCollection, Parameter, Token, UnknownOptionError

from whiten._version import __version__
from whiten.errors import ConfigError, nearest
from whiten.utils.urls import as_url


def whole_numbers(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Refuse 2.5 where an integer is expected; it would be rounded silently."""
    for argument in arguments:
        kinds = set(_types_in(argument.hint))
        if int in kinds and float not in kinds:
            for token in argument.tokens:
                if re.fullmatch(r"[-+]?\d*\.\d+(e[-+]?\d+)?", token.value.strip(), re.IGNORECASE):
                    name = argument.name.lstrip("-").replace("-", "_")
                    raise ConfigError(f"{name} must be an integer, not {token.value}")


# What is written in place, with renames and locks; `embed` writes whole objects.
_ON_DISK = ("--out", "--cache", "--report", "--csv", "--plot", "--uploads")
_ENDINGS = {"--report": (".html", ".htm"), "--csv": (".csv", ".txt"), "--plot": (".png",)}
_PLACES = ("--out", "--index", "--store", "--background", "INDEX")
_TEXTS = ("--id", "--remove", "--where")


def on_disk(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Refuse what cannot be written, before hours of work: a URL, a folder for a file."""
    for argument in arguments:
        if argument.name in _ON_DISK and commands[-1:] != ("embed",):
            for token in argument.tokens:
                if re.match(r"\w+:/", token.value):
                    from whiten.storage.services import refuse_as_output

                    refuse_as_output(token.value, argument.name)
                is_page = argument.name == "--out" and commands[-1:] == ("diagnose",)
                name = "--report" if is_page else argument.name
                if name in _ENDINGS:
                    _require_file(argument.name, token.value, _ENDINGS[name])
                elif argument.name == "--out" and commands[-1:] in (("dedup",), ("compact",)):
                    _require_folder(argument.name, token.value)


def _require_file(option: str, value: str, endings: Sequence[str]) -> None:
    """Refuse a file that cannot be written, or whose ending says that it is something else."""
    if os.path.isdir(value):  # noqa: PTH112 - of any name
        raise ConfigError(f"{option} {value} is a folder: name a file")
    ending = Path(value).suffix
    if ending and ending.lower() not in endings:
        named = Path(value).with_suffix(endings[0])
        raise ConfigError(f"{option} writes {endings[0]} files, not {ending}: write {named}")
    _require_folder(option, str(Path(value).parent))


def _require_folder(option: str, value: str) -> None:
    """Refuse a folder that can neither be made nor written to."""
    folder = next(str(p) for p in (Path(value), *Path(value).parents) if os.path.lexists(p))
    if not os.path.isdir(folder):  # noqa: PTH112 - of any name
        raise ConfigError(f"{option}: {folder} is a file, not a folder: name another place")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"{option}: {folder} may not be written to: name another place")


def _types_in(hint: Any) -> Iterator[Any]:
    """Yield a type and the types that it is made of, as `Path` of `list[Path] | None`."""
    yield hint
    for part in get_args(hint):
        yield from _types_in(part)


def known_places(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Refuse places that are none: empty, as a browser names files, or of unknown services."""
    for argument in arguments:
        is_place = argument.name in _PLACES or Path in _types_in(argument.hint)
        for token in argument.tokens if argument.name not in _TEXTS else ():
            if is_place and not token.value:  # it would be the current folder
                raise ConfigError(f"{argument.name} is empty: name a place")
            if found := re.match(r"file:/+(localhost/)?", token.value, re.IGNORECASE):
                path = f"/{unquote(token.value[found.end() :])}"
                raise ConfigError(f"{token.value} is no path: write {path}")
            is_url = re.match(r"\w+://", token.value) and as_url(token.value) is None
            if is_url and argument.name in _ON_DISK:  # a folder of this name would be made
                raise ConfigError(
                    f"{argument.name} {token.value.partition('://')[0]}:// is no service that is "
                    "written to: name a folder; a database is milvus:URI or pgvector:DSN"
                )
        for token in argument.tokens[:1] if argument.name == "--store" else ():
            from whiten.index.places import DATABASES

            scheme, colon, _ = token.value.partition(":")
            is_there = os.path.lexists(token.value) or as_url(token.value) is not None
            if colon and scheme not in DATABASES and not is_there:  # the rest may hold a password
                raise ConfigError(
                    f"--store {scheme}: is no database{nearest(scheme, DATABASES)}: write "
                    "milvus:URI or pgvector:DSN"
                )
        if argument.name in ("--index", "--store") and commands[-1:] == ("search",):
            for token in argument.tokens[:1]:  # what follows may be an image to search with
                from whiten.storage.services import refuse_as_index

                refuse_as_index(token.value)


app = App(
    name="whiten",
    version=__version__,
    help="Distil frozen image-embedding models into one small, fast student for visual search.",
    version_flags=["--version"],
    config=[whole_numbers, on_disk, known_places],
    print_error=False,
    exit_on_error=False,
    result_action="return_value",
    default_parameter=Parameter(consume_multiple=True, negative=()),  # --teachers A B
    suppress_keyboard_interrupt=False,  # `main` prints how to continue
)


def unknown_option(tokens: Sequence[str]) -> UnknownOptionError | None:
    """Return the error of an option that the verb does not have, if there is one.

    Values are checked before names: what was meant by a misspelt option is missing, or has other
    values than were meant, and that error alone would mislead.
    """
    command = app.parse_commands(tokens)[1][-1]
    known = command.assemble_argument_collection()
    names = {name for argument in known for name in argument.names}
    for text in tokens:
        if text == "--":  # what follows are no options
            return None
        name = text.partition("=")[0]
        if name.startswith("--") and name not in names:
            token = Token(keyword=name, source="cli")
            return UnknownOptionError(token=token, argument_collection=known, verbose=False)
    return None


Json = Annotated[bool, Parameter("--json", help="print JSON.")]
Quiet = Annotated[bool, Parameter("--quiet", help="show no progress.")]
Cache = Annotated[Path | None, Parameter(("--cache", "--embeddings"))]
Patterns = Annotated[tuple[str, ...], Parameter(consume_multiple=False, show_default=False)]
Exclude = Annotated[
    Patterns,
    Parameter(
        help="leave out images whose path below the folder, or any part of it, matches this glob; "
        "repeatable.",
    ),
]
Include = Annotated[Patterns, Parameter(help="take only images that match this glob; repeatable.")]
Model = Annotated[str | None, Parameter(("--model", "--student"))]
Runtime = Annotated[
    Literal["auto", "torch", "onnx", "openvino"],
    Parameter(help="runtime of the model; auto is torch on a GPU, and onnx on a CPU."),
]
OnCluster = Annotated[
    str | None,
    Parameter(
        "--cluster",
        help="compute on a Ray cluster: ray (that of this machine, or this machine alone) or "
        "ray://HEAD:PORT.",
    ),
]
Device = Annotated[
    str, Parameter("--device", help="device of the model: auto, cpu, cuda, cuda:1 or mps.")
]
