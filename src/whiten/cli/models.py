"""The verbs `teachers`, `convert` and `doctor`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from whiten.cli.app import Json, app
from whiten.cli.terminal import print_facts, print_json, say
from whiten.models.uri import SCHEMES


@app.command
def teachers(pattern: str = "", /, *, as_json: Json = False) -> None:
    """List models, or describe one.

    Args:
        pattern: part of a name, to list matches; or a whole URI, to describe that model.
    """
    from whiten.models.listing import describe, list_teachers, names_one

    found = list_teachers(pattern)
    if names_one(pattern, found):
        facts = describe(pattern)
        print_json(facts) if as_json else print_facts(facts)
        return
    if as_json:
        print_json(found)
        return
    for uri in found:
        print(uri)
    if not pattern:
        say("other models: name part of one (whiten teachers resnet), or write a URI:")
        for name, (what, example) in SCHEMES.items():
            say(f"  {name + ':':13} {what}, for example {example}")


@app.command
def convert(
    file: Path,
    /,
    *,
    out: Path,
    p: float | None = None,
    size: int | None = None,
    as_json: Json = False,
) -> None:
    """Convert a PCA-whitening or a student that the paper's authors released.

    Args:
        file: the released file.
        out: file of the whitening or folder of the student to write.
        p: GeM power of a student; 3 for landmarks, 1 for videos.
        size: input side of a student in pixels.
    """
    from whiten.models.published import convert as run

    facts = asdict(run(file, out, p=p, size=size))
    print_json(facts) if as_json else print_facts(facts)


@app.command
def doctor(*, as_json: Json = False) -> None:
    """Report installed extras, available devices, and how to run faster."""
    from whiten.cli.doctor import diagnose

    found = diagnose()
    if as_json:
        print_json(asdict(found))
        return
    print_facts(found.facts)
    for line in found.advice:
        print(f"- {line}")
