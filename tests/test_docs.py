"""The documentation's pages are there, and it builds without a warning."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from whiten.cli.app import app, unknown_option

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def pages(nav: list[Any]) -> list[str]:
    found: list[str] = []
    for entry in nav:
        [value] = entry.values()
        found += [value] if isinstance(value, str) else pages(value)
    return found


def test_the_contents_are_all_the_pages() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    there = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert set(pages(config["nav"])) == there


def test_the_reference_names_what_exists() -> None:
    for page in (DOCS / "api").glob("*.md"):
        for name in re.findall(r"^::: ([\w.]+)$", page.read_text(), re.MULTILINE):
            module, _, attribute = name.rpartition(".")
            try:
                importlib.import_module(name)
            except ModuleNotFoundError:
                assert hasattr(importlib.import_module(module), attribute), f"{page.name}: {name}"


def test_every_public_name_is_in_the_reference() -> None:
    import whiten

    text = "\n".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    for name in whiten.__all__:
        assert re.search(rf"\b{name}\b", text) or f"whiten.{name}" in text or name == "WhitenError"


def arguments_of(file: str) -> dict[str, set[str]]:
    """The tests of a file, each with its arguments."""
    body = ast.parse((ROOT / file).read_text("utf-8")).body
    functions = (node for node in body if isinstance(node, ast.FunctionDef))
    return {node.name: {one.arg for one in node.args.args} for node in functions}


def test_the_tests_of_each_kind_of_input_exist() -> None:
    text = (DOCS / "kinds.md").read_text("utf-8")
    rows = re.findall(r"^\| (\d+)\. .* \| (.*) \|$", text, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 28))
    assert all(tests.count("::test_") for _, tests in rows)
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`(\\\*)?", text)
    assert len(named) == text.count("::")
    for file, name, is_in_every_place in named:
        arguments = arguments_of(file)
        assert name in arguments, f"{file} has no test {name}"
        if is_in_every_place:
            assert arguments[name] & {"place", "client"}, f"{name} is given no place"


def commands() -> list[list[str]]:
    """The arguments of every `whiten …` in blocks and sentences of the documentation."""
    found = []
    for page in (*DOCS.rglob("*.md"), ROOT / "README.md", *(ROOT / "recipes").rglob("*.*")):
        text = page.read_text("utf-8").replace("\\\n", " ").replace("\n# ", "\n")
        lines = re.findall(r"^[ \t]*(whiten [a-z].*)$", text, re.MULTILINE)
        for line in (*lines, *re.findall(r"`(whiten [a-z][^`]*)`", text)):
            found.append(shlex.split(line, comments=True)[1:])
    return found


def test_the_commands_have_verbs_and_options_that_exist() -> None:
    named = commands()
    assert len(named) > 100
    for command in named:
        assert command[0] in app, command
        assert unknown_option(command) is None, command


@pytest.mark.slow
def test_the_documentation_builds(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "api" / "whitening.html").read_text()
    assert 'id="whiten.whitening.whitener.Whitener.partial_fit"' in page
    # Nothing is fetched by who reads it.
    for html in tmp_path.rglob("*.html"):
        fetched = re.findall(r'(?:src|<link[^>]* href)="(https?://[^"]*)"', html.read_text())
        assert not fetched, f"{html.name} fetches {fetched}"
