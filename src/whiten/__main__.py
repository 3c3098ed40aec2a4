"""Run the command line as `python -m whiten`, without the installed script."""

from whiten.cli import main

if __name__ == "__main__":  # spawned processes import this module, too
    main()
