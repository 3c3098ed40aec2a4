"""The verbs: parse, call, print. No logic lives here.

Results go to stdout, progress and messages to stderr. Bad input is one line and exit code 2.
Heavy imports happen inside the verb that needs them.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence

from whiten.allocator import keep_freed_memory
from whiten.cli import data, models, retrieval, runs  # noqa: F401 - they add their verbs
from whiten.cli.app import app
from whiten.config_file import with_config
from whiten.terminal import one_line_endings, show_warning

# Lightning announces what nobody asked for. Set on import, so that the processes that it spawns,
# which import the main module, are quiet too; its own import resets the level of its root alone.
for _name in ("rank_zero", "distributed"):
    logging.getLogger(f"lightning_fabric.utilities.{_name}").setLevel(logging.WARNING)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the command `whiten`."""
    warnings.showwarning = show_warning
    keep_freed_memory()
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    with one_line_endings(tokens):
        app(with_config(tokens))
