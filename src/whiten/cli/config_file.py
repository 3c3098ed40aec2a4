"""`--config FILE` and `--recipe FILE`: the options of a run from a YAML file.

Options of the command line go before those of a file. A recipe may name the images too, and its
paths are relative to the current folder, not to the file.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

from whiten.errors import ConfigError, nearest, one_line
from whiten.models.uri import parse_uri
from whiten.runs.spec import DistillSpec

# What a file may hold beside options: a run's own config.yaml will do.
_BESIDE = ("images", "version")
# Options that are right or wrong together.
_TOGETHER = ("batch_size", "devices", "nodes", "lr", "min_lr")


def with_config(arguments: Sequence[str]) -> list[str]:
    """Add the options of a `distill` command's files that it does not give itself.

    Raises:
        ConfigError: a file is missing, no mapping, or has an unknown option or a wrong value.
    """
    tokens = list(arguments)
    if tokens[:1] != ["distill"]:
        return tokens
    for path in _named(tokens, "--config")[:1]:
        tokens += _tokens(read_options(Path(path), _given(tokens)))
    for path in _named(tokens, "--recipe"):
        if _is_file(path):
            tokens = _without(tokens, "--recipe", path)
            options = read_recipe(Path(path), _given(tokens))
            images = options.get("images")
            tokens += [] if images is None else [f"--recipe-images={images}"]
            tokens += _tokens(options)
    return tokens


def read_recipe(path: Path, given: Collection[str] = ()) -> dict[str, Any]:
    """What a recipe's file holds: `read_options`, with the names of models and fusions checked."""
    options = read_options(path, given)
    try:
        for uri in options.get("teachers") or ():
            parse_uri(uri)
        if "student" in options:
            parse_uri(options["student"])
        if options.get("fusion") is not None:
            from whiten.distillation.fusion import check_strategy

            check_strategy(options["fusion"])
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return options


def read_options(path: Path, given: Collection[str] = ()) -> dict[str, Any]:
    """The options that a file holds: all names are known, and the values are right.

    Args:
        given: options to leave out, for the command line has them.

    Raises:
        ConfigError: the file is missing, no mapping, or has an unknown option or a wrong value.
    """
    kinds = get_type_hints(DistillSpec)
    options = {}
    for name, value in _read(path).items():
        if name not in kinds and name not in _BESIDE:
            known = [*kinds, *_BESIDE]
            raise ConfigError(f"{path}: unknown option {name!r}{nearest(name, known)}")
        if name not in given and value is not None:
            options[name] = _converted(value, kinds[name]) if name in kinds else value
    if not isinstance(options.get("images", ""), str):
        raise ConfigError(f"{path}: images must be a path, not {options['images']!r}")
    # Alone they may be wrong, and right beside what the command line has.
    alone = _TOGETHER if any(name in given for name in _TOGETHER) else ()
    checked = {name: options[name] for name in options if name not in (*_BESIDE, *alone)}
    try:
        DistillSpec.from_mapping({"teachers": ["named elsewhere"], **checked})
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return options


def _named(tokens: Sequence[str], flag: str) -> list[str]:
    """The values of a flag."""
    values = [tokens[i + 1] for i, token in enumerate(tokens[:-1]) if token == flag]
    return values + [token.partition("=")[2] for token in tokens if token.startswith(f"{flag}=")]


def _without(tokens: Sequence[str], flag: str, value: str) -> list[str]:
    """The tokens without a flag of this value."""
    if f"{flag}={value}" in tokens:
        return [token for token in tokens if token != f"{flag}={value}"]
    place = next(i for i, token in enumerate(tokens) if list(tokens[i : i + 2]) == [flag, value])
    return [*tokens[:place], *tokens[place + 2 :]]


def _is_file(text: str) -> bool:
    """Whether a recipe is a file; the names of recipes have neither dot nor slash."""
    return "." in text or "/" in text or os.sep in text or os.path.isfile(text)  # noqa: PTH113


def _given(tokens: Sequence[str]) -> set[str]:
    """Names of the options that stand among the tokens."""
    flags = [token.partition("=")[0][2:] for token in tokens if token.startswith("--")]
    return {flag.removeprefix("no-").replace("-", "_") for flag in flags}


def _tokens(options: dict[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        if name in _BESIDE:
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            yield f"--{flag}" if value else f"--no-{flag}"
        else:  # joined, so that no value is taken for a flag
            yield from (f"--{flag}={v}" for v in (value if isinstance(value, list) else [value]))


def _converted(value: Any, kind: Any) -> Any:
    """What YAML reads otherwise than people: 1e-3 is a text to it, and 32 no name."""
    if kind == list[str] and isinstance(value, str):
        return [value]
    if type(value) is int and str(value) in get_args(kind):
        return str(value)
    if isinstance(value, str) and float in (kind, *get_args(kind)):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _read(path: Path) -> dict[Any, Any]:
    import yaml

    try:
        options = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {path}: {one_line(error)}") from error
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise ConfigError(f"{path} must hold options, one `name: value` a line")
    return options
