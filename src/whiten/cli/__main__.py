"""`python -m whiten.cli`: the command without its script."""

from whiten.cli import main

if __name__ == "__main__":  # spawned processes import this module, too
    main()
