"""The command-line application that the verbs belong to."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from whiten._version import __version__

app = App(
    name="whiten",
    version=__version__,
    help="Distil frozen image-embedding models into one small, fast student for visual search.",
    version_flags=["--version"],
    print_error=False,
    exit_on_error=False,
    result_action="return_value",
    default_parameter=Parameter(consume_multiple=True),  # --teachers A B
    suppress_keyboard_interrupt=False,  # `main` says how to go on
)

Json = Annotated[bool, Parameter("--json")]
