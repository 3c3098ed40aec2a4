"""The verbs: parse, call, print. No logic lives here.

Results go to stdout, progress and messages to stderr. Bad input is one line and exit code 2.
Heavy imports happen inside the verb that needs them.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

from whiten.cli import (  # noqa: F401 - they add their verbs
    compact,
    data,
    dedup,
    export,
    indexing,
    models,
    retrieval,
    runs,
    serve,
)
from whiten.cli.app import app
from whiten.cli.terminal import one_line_endings, show_warning
from whiten.utils.memory import keep_freed_memory


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the command `whiten`."""
    warnings.showwarning = show_warning
    keep_freed_memory()
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    with one_line_endings(tokens):
        app(tokens)
