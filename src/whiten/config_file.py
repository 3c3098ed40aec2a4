"""`--config FILE`: the options of a run from a YAML file, below those of the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from whiten.errors import ConfigError, nearest, one_line
from whiten.spec import DistillSpec


def with_config(arguments: Sequence[str]) -> list[str]:
    """Add the options of a `distill` command's `--config FILE` that it does not give itself.

    Raises:
        ConfigError: the file is missing, no mapping, or has an unknown option.
    """
    tokens = list(arguments)
    if tokens[:1] != ["distill"]:
        return tokens
    named = [tokens[i + 1] for i, token in enumerate(tokens[:-1]) if token == "--config"]
    named += [token.partition("=")[2] for token in tokens if token.startswith("--config=")]
    if not named:
        return tokens
    path = Path(named[0])
    known = set(DistillSpec.__dataclass_fields__)
    given = {token.partition("=")[0] for token in tokens if token.startswith("--")}
    for name, value in _read(path).items():
        if name in ("images", "version"):  # a run's own config.yaml will do
            continue
        if name not in known:
            raise ConfigError(f"{path}: unknown option {name!r}{nearest(name, known)}")
        flag = "--" + name.replace("_", "-")
        negative = "--no-" + name.replace("_", "-")
        if flag in given or negative in given or value is None:
            continue
        if isinstance(value, bool):
            tokens.append(flag if value else negative)
        else:  # joined, so that no value is taken for a flag
            tokens += [f"{flag}={v}" for v in (value if isinstance(value, list) else [value])]
    return tokens


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
