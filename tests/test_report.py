from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from whiten.evaluation.run import verdicts
from whiten.evaluation.run_encoders import CLOSED_FORM, START
from whiten.report.plots import spectra
from whiten.report.run_page import Hit, ReportData, Retrieval, Similarities, write_report
from whiten.report.table import HEADINGS, Row, format_table

NAMES = ['<b>&"', "$x$ _y_", "_hidden", "long-" * 30, "Straße Ελλάδα", "日本語", "a\nb \udcff"]
FIGURES = {
    "results",
    "accuracy_latency",
    "similarities",
    "spectra",
    "whitening_choices",
    "wins",
    "loss",
}


def make_row(name: str = "student, groups", **changes: Any) -> Row:
    row: dict[str, Any] = {
        "kind": "student", "map": 0.414, "map_ci": (0.399, 0.428), "recall_at_1": 0.7,
        "params": 3_400_000, "macs": 33_000_000, "ms_per_image": 1.1, "dim": 256,
    }  # fmt: skip
    return Row(name, **(row | changes))


def make_rows() -> list[Row]:
    rows = [
        make_row(name, kind="teacher", map=0.2 + i / 50, map_ci=(0.19 + i / 50, 0.21 + i / 50))
        for i, name in enumerate(NAMES)
    ]
    rows.append(make_row("raw", kind="fusion-raw", map=float("nan"), map_ci=(float("nan"),) * 2))
    rows.append(make_row("fused", kind="fusion-whitened", macs=1_200_000_000, ms_per_image=22.0))
    rows.append(make_row("slow", ms_per_image=None, params=None, macs=None, map=0.45))
    return rows


def make_records(teachers: list[str], steps: int = 40) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = [
        {"step": s, "epoch": 0, "loss": 4 - s / 20, "lr": 1e-3, "images_per_s": 100.0}
        for s in range(steps)
    ]
    for record in records[::2]:
        record["wins"] = {teacher: 1 / len(teachers) for teacher in teachers}
    records[3]["loss"] = float("nan")
    records[4]["loss"] = None
    records[6]["wins"] = {teachers[0]: float("nan")}
    return records


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ReportData:
    tmp_path = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    image = tmp_path / "a.jpg"
    Image.fromarray(rng.integers(0, 255, (300, 40, 3), np.uint8)).save(image)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    hits = [
        Hit(str(image), 0.9, True),
        Hit(str(tmp_path / "missing.jpg"), 0.8, False),
        Hit(str(tmp_path / "broken.jpg"), 0.7, None),
        Hit("null\0byte", float("nan"), False),
    ]
    grids = [
        Retrieval("best", str(image), 1.0, hits * 4),
        Retrieval("median", "nowhere", 0.5, hits[:1]),
        Retrieval("worst", str(tmp_path), float("nan"), []),
    ]
    samples = {name: Similarities(*rng.normal(0, 0.1, (4, 200))) for name in NAMES}
    samples[NAMES[1]] = Similarities(*np.full((4, 5), np.nan))
    samples[NAMES[2]] = Similarities(*np.zeros((4, 0)))
    samples[NAMES[3]] = Similarities(*np.ones((4, 3)))
    return ReportData(
        title="A <script>alert(1)</script> title",
        facts=[("images & more", "4,712 <train>")],
        rows=make_rows(),
        similarities=samples,
        spectra={name: np.r_[np.arange(1.0, 50) ** -1.5, 0.0, -1e-9] for name in NAMES},
        whitening_choices={
            name: (np.array([0.0, 1.0, np.inf]), np.array([0.3, 0.4, i / 10]), i % 3)
            for i, name in enumerate(NAMES)
        },
        runs={name: make_records(NAMES) for name in NAMES}
        | {"no wins": [{"step": 0, "loss": 1.0}], "nothing": []},
        retrievals={"a/b": grids, "A b": grids, "日本": grids, "empty": []},
        notes=["The note <is> \udcff shown."],
        commands=["echo '<x>' && true", "whiten search photos.index"],
    )


@pytest.fixture(scope="module")
def written(data: ReportData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report; drawing it takes seconds, so that it is done once."""
    return write_report(data, tmp_path_factory.mktemp("run")).parent


class Page(HTMLParser):
    """Attributes, the text of the title, and the cells of the table."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.bold: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag  # well formed: nothing a user wrote opened a tag

    def handle_data(self, text: str) -> None:
        self.text += text
        if "td" in self._open or "th" in self._open:
            self.rows[-1][-1] += text
        if self._open and self._open[-1] == "b":
            self.bold.append(text)


def test_page_holds_everything_and_refers_to_nothing(data: ReportData, written: Path) -> None:
    html = (written / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert not re.search(r"https?:|url\(|@import", html)
    assert {tag for tag, _ in page.tags} & {"script", "link", "iframe", "a", "is", "x"} == set()
    for _, attributes in page.tags:
        assert "href" not in attributes
        assert (attributes.get("src") or "data:").startswith("data:")
    for said in (data.title, data.commands[0], "4,712 <train>", "images & more", "The note <is>"):
        assert said in page.text
    assert page.text.count(data.title) == 2  # as the title, and as the heading


def test_figures_are_files_and_in_the_page(written: Path) -> None:
    page = Page((written / "report.html").read_text(encoding="utf-8"))
    files = {path.stem: path.read_bytes() for path in (written / "figures").iterdir()}
    grids = {"retrievals_a-b", "retrievals_a-b-2", "retrievals_encoder"}
    assert set(files) == FIGURES | grids
    embedded = [a["src"] for tag, a in page.tags if tag == "img"]
    assert {base64.b64decode((src or "").partition(",")[2]) for src in embedded} == set(
        files.values()
    )
    for png in files.values():
        assert len(png) > 5000
        with Image.open(io.BytesIO(png)) as image:
            image.load()
            assert image.width > 600
            assert "Software" not in image.info
            assert len(image.convert("RGB").getcolors(1 << 24) or []) > 20  # not blank


def test_table_of_the_page(written: Path) -> None:
    page = Page((written / "report.html").read_text(encoding="utf-8"))
    head, *rows = page.rows
    assert tuple(head) == HEADINGS
    assert [row[0] for row in rows[:6]] == NAMES[:6]
    assert rows[6][0] == "a□b □"
    assert rows[7][2:] == ["–", "70.0", "3.4M", "33M", "1.1", "256"]
    assert rows[8] == [
        "fused", "fusion-whitened", "41.4 [39.9, 42.8]", "70.0", "3.4M", "1.2G", "22", "256",
    ]  # fmt: skip
    assert rows[9][4:7] == ["–", "–", "–"]
    assert page.bold == ["45.0"]


def files_of(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.slow
def test_equal_data_give_equal_bytes_whatever_the_users_style(
    data: ReportData, written: Path, tmp_path: Path
) -> None:
    import matplotlib

    with matplotlib.rc_context({"text.usetex": True, "font.size": 33.0}):
        before = dict(matplotlib.rcParams)
        assert write_report(data, tmp_path / "new/run") == tmp_path / "new/run/report.html"
        assert dict(matplotlib.rcParams) == before
    assert files_of(tmp_path / "new/run") == files_of(written)  # and no temporary file is left


def test_a_failed_write_keeps_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = write_report(ReportData("old"), tmp_path)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(ReportData("new"), tmp_path)
    assert "old" in page.read_text(encoding="utf-8")
    assert list(files_of(tmp_path)) == ["report.html"]


def test_empty_parts_are_left_out(tmp_path: Path) -> None:
    data = ReportData(
        "nothing yet",
        rows=[make_row(ms_per_image=None)],
        spectra={"flat": np.zeros(4)},
        runs={"r": [{"step": 0, "loss": float("nan")}]},
        retrievals={"e": []},
    )
    page = Page(write_report(data, tmp_path).read_text(encoding="utf-8"))
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["results.png"]
    assert [tag for tag, _ in page.tags].count("section") == 2  # the table and its picture
    page = Page(write_report(ReportData("bare"), tmp_path / "bare").read_text(encoding="utf-8"))
    assert "section" not in [tag for tag, _ in page.tags]


def test_format_table() -> None:
    rows = [
        make_row("efficientnet-lite2, whitened", kind="teacher", params=4_870_000),
        make_row("whitened fusion", kind="fusion-whitened", macs=1_234_000_000, ms_per_image=22.4),
        make_row("student", ms_per_image=0.351, params=999_700, map_ci=(float("nan"), 0.5)),
    ]
    head, *lines = format_table(rows).splitlines()
    assert tuple(re.split(r"\s{2,}", head)) == HEADINGS
    assert [re.split(r"\s{2,}", line) for line in lines] == [
        ["efficientnet-lite2, whitened", "teacher", "41.4 [39.9, 42.8]", "70.0", "4.9M", "33M",
         "1.1", "256"],
        ["whitened fusion", "fusion-whitened", "41.4 [39.9, 42.8]", "70.0", "3.4M", "1.2G", "22",
         "256"],
        ["student", "student", "41.4", "70.0", "1.0M", "33M", "0.35", "256"],
    ]  # fmt: skip
    assert len({len(line) for line in (head, *lines)}) == 1  # numbers end in one column


@pytest.mark.parametrize("name", [*NAMES, "日本" * 60])
def test_format_table_is_never_too_wide(name: str) -> None:
    row = make_row(name, kind="fusion-whitened", map=1.0, map_ci=(1.0, 1.0), dim=65536)
    lines = format_table([row, make_row()]).splitlines()
    assert len(lines) == 3
    wide = [len(line) + sum(c in "日本語" for c in line) for line in lines]
    assert max(wide) <= 110
    assert len(set(wide)) == 1


def test_format_table_without_rows() -> None:
    assert tuple(format_table([]).split("  ")) == HEADINGS


@pytest.mark.parametrize(
    ("whitened", "said"),
    [
        (0.6, "adds 10.0 points of mAP to their fusion (50.0 to 60.0)"),
        (0.4, "costs 10.0 points of mAP to their fusion (50.0 to 40.0)"),
        (0.5, "does not change the mAP of their fusion (50.0 to 50.0)"),
    ],
)
def test_the_gain_by_whitening_in_words(whitened: float, said: str) -> None:
    scores: dict[Any, float] = {"teacher": 0.3, "fusion-raw": 0.5, "fusion-whitened": whitened}
    rows = [
        Row(kind, kind, score, (score, score), 1.0, 1, 1, 1.0, 8) for kind, score in scores.items()
    ]
    [line] = verdicts(rows)
    assert line == f"Whitening the teachers {said}; the best single teacher, teacher, has 30.0."


@pytest.mark.parametrize(
    ("macs", "said"),
    [
        (2, "with 50 times less compute"),
        (90, "with about as much compute"),
        (250_000, "with 2,500 times more compute"),
    ],
)
def test_the_cost_of_a_student_in_words(macs: int, said: str) -> None:
    rows = [make_row("fused", kind="fusion-whitened", macs=100), make_row("small", macs=macs)]
    assert any(said in line for line in verdicts(rows))


def test_only_the_student_is_judged_by_its_starts() -> None:
    """Not the closed form from which training began."""
    rows = [make_row(START, map=0.5), make_row(CLOSED_FORM, map=0.4)]
    assert verdicts([*rows, make_row("student", map=0.6)]) == []
    [line] = verdicts([*rows, make_row("student", map=0.45)])
    assert line.startswith("student: 45.0 is below the student's start, ")


def test_axes_of_rounding_errors_are_not_drawn() -> None:
    drawn = [
        spectra({"few": np.array(values)}, {"few": "#000000"})
        for values in ([1.0, 0.1, 1e-6], [1.0, 0.1, 1e-6, 1e-18])
    ]
    assert drawn[0] is not None and drawn[0] == drawn[1]
