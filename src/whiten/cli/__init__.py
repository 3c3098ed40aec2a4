"""The command line: parse, call, print, without further logic.

Results go to stdout, progress and messages to stderr. Bad input gives one line and exit code 2.
Each verb imports heavy modules itself.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

from whiten.cli import (  # noqa: F401 - they add their verbs
    compact,
    data,
    dedup,
    diagnose,
    export,
    indexing,
    models,
    retrieval,
    runs,
    serve,
)
from whiten.cli.app import app, unknown_option
from whiten.cli.terminal import one_line_endings, show_warning
from whiten.errors import ConfigError
from whiten.models.choice import choice_restored
from whiten.utils.memory import keep_freed_memory
from whiten.utils.progress import quiet_restored
from whiten.utils.steady import be_steady


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the command `whiten`."""
    warnings.showwarning = show_warning
    be_steady()
    keep_freed_memory()
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    with one_line_endings(tokens), choice_restored(), quiet_restored():
        try:
            app(tokens)
        except ConfigError:
            if (unknown := unknown_option(tokens)) is not None:
                raise unknown from None
            raise
