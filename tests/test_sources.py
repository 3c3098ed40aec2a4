"""Sources of images: reading their column, and metrics per source."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from command_line import Captured, fails, prints
from helpers import TEACHER, write_groups, write_image
from whiten.datasets.finding import find_items
from whiten.datasets.sources import read_sources, without_sources
from whiten.embedding.opening import load
from whiten.errors import ConfigError
from whiten.evaluation.evaluate import evaluate

SHOPS = ["north", "north", "", "south", "south", " north "]


@pytest.fixture
def folder(tmp_path: Path, colour_teachers: None) -> Path:
    return write_groups(tmp_path / "photos", {"a": 3, "b": 3})


def names(folder: Path) -> list[str]:
    return find_items(folder).ids.to_pylist()


def write_csv(path: Path, paths: list[str], shops: list[str], column: str = "shop") -> Path:
    rows = [f"{p},{p[0]},{s}" for p, s in zip(paths, shops, strict=True)]
    path.write_text("\n".join([f"path,group,{column}", *rows]) + "\n")
    return path


def test_a_table_and_a_folder_with_a_table(folder: Path) -> None:
    table = write_csv(folder / "photos.csv", names(folder), SHOPS)
    expected = dict(
        zip(names(folder), ["north", "north", "(no shop)"] + ["south"] * 2, strict=False)
    )
    expected["b/2.png"] = "north"
    for source in (table, folder):
        found = read_sources(source, find_items(source), "shop")
        assert found.of_image == expected
        assert found.known == ["north", "south", "(no shop)"]
        assert found.are_of(["(no shop)"]).tolist() == [n == "a/2.png" for n in names(folder)]


@pytest.mark.parametrize("start", ["", "./", "../photos/"])
@pytest.mark.parametrize(("name", "delimiter"), [("t.csv", ";"), ("t.tsv", "\t"), ("t.CSV", "|")])
def test_tables_are_read_as_everywhere(folder: Path, name: str, delimiter: str, start: str) -> None:
    rows = [["id", " shop ", "path"], ["7", "north", f"{start}a/0.png"]]
    rows.append(["8", '"south, west"', f"{start}b/0.png"])
    lines = [delimiter.join(row) for row in rows]
    (folder / name).write_text("\r\n".join(lines), encoding="utf-16")
    known = read_sources(folder, find_items(folder), "shop")
    assert known.known == ["north", "south, west", "(no shop)"]
    assert (known.of_image["a/0.png"], known.of_image["b/0.png"]) == ("north", "south, west")
    table = folder / name
    found = read_sources(table, find_items(table), "shop").of_image
    assert found == {"7": "north", "8": "south, west"}


def test_images_that_a_folders_table_does_not_list_have_no_source(folder: Path) -> None:
    write_csv(folder / "photos.csv", names(folder)[:2], SHOPS[:2])
    found = read_sources(folder, find_items(folder), "shop")
    assert list(found.of_image.values()) == ["north"] * 2 + ["(no shop)"] * 4


def test_years_of_parquet_are_whole_numbers(folder: Path) -> None:
    years = pa.array([2019.0, None, float("nan"), 2020.0, 2020.0, 2021.5])
    pq.write_table(pa.table({"path": names(folder), "year": years}), folder / "t.parquet")
    found = read_sources(folder, find_items(folder), "year")
    assert list(found.of_image.values()) == ["2019", *["(no year)"] * 2, "2020", "2020", "2021.5"]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("shpo", "has no column 'shpo'; did you mean 'shop'? It has 'path', 'group', 'shop'"),
        ("SHOP", "has no column 'SHOP'; did you mean 'shop'?"),
        ("xyz", "has no column 'xyz'. It has 'path', 'group', 'shop'"),
        ("path", "column 'path' of .* names images and not their sources"),
    ],
)
def test_wrong_columns(folder: Path, column: str, message: str) -> None:
    table = write_csv(folder / "photos.csv", names(folder), SHOPS)
    for source in (table, folder):
        with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
            read_sources(source, find_items(source), column)


def test_tables_of_a_folder_that_do_not_serve(folder: Path) -> None:
    items = find_items(folder)
    with pytest.raises(ConfigError, match="has no table that names the sources of its images"):
        read_sources(folder, items, "shop")
    (folder / "prices.csv").write_text("product,shop\nx,north\n")  # says nothing of images
    with pytest.raises(ConfigError, match="has no table that names the sources of its images"):
        read_sources(folder, items, "shop")
    write_csv(folder / "one.csv", ["elsewhere.png"], ["north"])
    with pytest.raises(ConfigError, match=r"one\.csv describes none of these images"):
        read_sources(folder, items, "shop")
    write_csv(folder / "one.csv", ["a/0.png"] * 2, ["north", "south"])
    with pytest.raises(ConfigError, match=r"lists 'a/0\.png' twice"):
        read_sources(folder, items, "shop")
    write_csv(folder / "two.csv", names(folder), SHOPS)
    with pytest.raises(ConfigError, match=r"one\.csv and two\.csv in .* each have a column 'shop'"):
        read_sources(folder, items, "shop")


def test_without_sources_leaves_tables_without_the_column_alone(folder: Path) -> None:
    items = find_items(folder)
    assert without_sources(folder, items, "shop", ["north"]) is items
    write_csv(folder / "photos.csv", names(folder), SHOPS)
    kept = without_sources(folder, items, "shop", ["north", "unknown here"])
    assert kept.ids.to_pylist() == ["a/2.png", "b/0.png", "b/1.png"]


def test_the_queries_of_a_source_search_the_whole_gallery(folder: Path) -> None:
    shutil.copy(folder / "b" / "0.png", folder / "a" / "2.png")  # looks like the other group
    table = write_csv(folder / "photos.csv", names(folder), ["x", "x", "y", "z", "z", "z"])
    result = evaluate(load(TEACHER), table, source_column="shop")
    assert result.by_source is not None
    aps = dict(zip(result.query_ids, result.aps, strict=True))
    results = result.by_source.results
    for source, own in {"x": ["a/0.png", "a/1.png"], "y": ["a/2.png"]}.items():
        assert results[source].queries == len(own)
        assert results[source].figures["map"].value == np.mean([aps[name] for name in own])
    assert results["y"].figures["recall@1"].value == 0.0
    overall = sum(r.queries * r.figures["map"].value for r in results.values()) / 6
    assert result.figures["map"].value == pytest.approx(overall)
    assert result.gallery_size == 6


def test_a_source_called_all_is_not_the_row_of_all_queries(folder: Path) -> None:
    table = write_csv(folder / "photos.csv", names(folder), ["all", "x", "all", "x", "x", "x"])
    split = evaluate(load(TEACHER), table, source_column="shop").by_source
    assert split is not None and split.measured.endswith("; '(all)' is all queries")
    rows = split.cells(6, split.results["all"].figures)
    assert [row[:2] for row in rows[1:]] == [["all", "2"], ["x", "4"], ["(all)", "6"]]


def test_a_source_without_queries_is_shown(folder: Path) -> None:
    write_image(folder / "c" / "0.png", seed=9)  # alone in its group
    table = write_csv(folder / "photos.csv", names(folder), ["x"] * 6 + ["lonely"])
    result = evaluate(load(TEACHER), table, source_column="shop")
    assert result.by_source is not None
    assert result.by_source.results["lonely"].queries == 0
    assert result.by_source.results["lonely"].figures == {}
    [line] = [line for line in result.lines() if line.startswith("  lonely")]
    assert line.split()[1:] == ["0", *["–"] * len(result.figures)]


def test_queries_of_their_own_have_their_own_sources(folder: Path, tmp_path: Path) -> None:
    queries = write_groups(tmp_path / "queries", {"a": 1, "b": 1})
    write_csv(queries / "shops.csv", names(queries), ["x", "y"])
    result = evaluate(load(TEACHER), folder, queries=queries, source_column="shop")
    assert result.by_source is not None
    assert {name: r.queries for name, r in result.by_source.results.items()} == {"x": 1, "y": 1}


def test_the_command_line(capsys: Captured, folder: Path, tmp_path: Path) -> None:
    write_csv(folder / "photos.csv", names(folder), SHOPS)
    asked = ["evaluate", folder, "--model", TEACHER, "--source-column", "shop"]
    page = tmp_path / "page.html"
    out, _ = prints(capsys, *asked, "--report", page)
    table = out[out.index("By shop") :].splitlines()
    assert "the queries of one source search the gallery of all sources" in table[0]
    assert table[1].split()[:4] == ["shop", "queries", "map", "map@1"]
    counts = [("north", "3"), ("south", "2"), ("(no shop)", "1"), ("all", "6")]
    for line, (name, queries) in zip(table[2:], counts, strict=True):
        assert (
            line.startswith(f"  {name} ") and line.removeprefix(f"  {name}").split()[0] == queries
        )
        assert f">{name}</th><td>{queries}</td>" in page.read_text()
    facts = json.loads(prints(capsys, *asked, "--json")[0])
    assert facts["by_source"]["column"] == "shop"
    found = facts["by_source"]["sources"]
    assert {name: own["queries"] for name, own in found.items()} == {
        "north": 3,
        "south": 2,
        "(no shop)": 1,
    }
    assert set(found["north"]["map"]) == {"value", "low", "high"}
    assert "recall@1" in found["south"]
    message = fails(capsys, "evaluate", folder, "--model", TEACHER, "--source-column", "shopp")
    assert "did you mean 'shop'?" in message


def test_benchmarks_have_no_sources(capsys: Captured, folder: Path) -> None:
    asked = ["evaluate", folder, "--model", TEACHER, "--protocol", "videos"]
    assert "videos has no sources" in fails(capsys, *asked, "--source-column", "shop")
