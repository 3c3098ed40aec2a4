"""Run the command line: the installed script, or `python -m whiten` where that is missing."""

import sys


def main() -> None:
    """Entry point of the command `whiten`."""
    try:
        from whiten.cli import main as run
    except KeyboardInterrupt:  # from here on, whiten.cli handles it
        print("whiten: interrupted: run the same command again", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":  # spawned processes import this module, too
    main()
