"""The search page for everyone: keys, screen readers, dark rooms, small screens; and no network."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from chromium import Browser, upload
from service import Service

pytestmark = pytest.mark.slow


def test_keys_alone(page: Browser, folder: Path) -> None:
    from selenium.webdriver import ActionChains, Keys

    def press(*keys: str) -> None:
        ActionChains(page.driver).send_keys(*keys).perform()

    reached = []
    for _ in range(7):
        press(Keys.TAB)
        reached.append(page.run("const e = document.activeElement; return e.id || e.tagName"))
    assert reached[:4] == ["file", "least", "SUMMARY", "others"]
    assert reached[4] == "BUTTON"
    first = page.hits()[2][0]
    press(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert page.run("return document.activeElement.dataset.id") == page.hits()[0][0]
    press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    press(Keys.ENTER)
    page.wait(lambda: page.text("#named") == first)
    outline = "return getComputedStyle(document.querySelector('label[for=file]')).outlineStyle"
    page.run("document.getElementById('file').focus()")
    assert page.run(outline) == "solid"


def test_what_a_screen_reader_is_told(page: Browser, folder: Path) -> None:
    upload(page, folder / "b.png")
    unnamed = page.run("""
        return [...document.querySelectorAll("input, button, img, section, dialog, [role=group]")]
          .filter((e) => !(e.labels?.length || e.textContent.trim() || e.hasAttribute("alt")
            || e.ariaLabel || e.getAttribute("aria-labelledby"))).map((e) => e.outerHTML);
    """)
    assert unnamed == []
    assert page.find("#status").get_attribute("aria-live") == "polite"
    assert page.find("html").get_attribute("lang") == "en"
    assert page.find("#hits").get_attribute("aria-busy") is None


def luminance(colour: str) -> float:
    channels = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(page: Browser, folder: Path, scheme: str) -> None:
    """Text stands out from what is behind it, 4.5 to 1 (WCAG AA)."""
    page.scheme(scheme)
    try:
        upload(page, folder / "b.png")
        page.run("document.getElementById('error').hidden = false")
        pairs = page.run("""
            return ["body", "header p", "#status", "#hits button", ".name", "label.main", "#draw",
                ".quiet", "summary", "#error p", "#again", "footer a"].map((selector) => {
              const element = document.querySelector(selector);
              let behind = element;
              const colour = (e) => getComputedStyle(e).backgroundColor;
              while (colour(behind) === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
              return [selector, getComputedStyle(element).color, colour(behind)];
            });
        """)
        for selector, ink, ground in pairs:
            dark, light = sorted([luminance(ink), luminance(ground)])
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (selector, ink, ground)
        assert (luminance(pairs[0][2]) < 0.1) == (scheme == "dark")
    finally:
        page.scheme("")


def test_on_a_phone(page: Browser, service: Service, folder: Path) -> None:
    page.phone(True)
    try:
        page.open(service.url)
        upload(page, folder / "query.png")
        page.wait(lambda: page.find("#draw").is_displayed())
        assert page.run("return document.documentElement.scrollWidth") == 390
        columns = page.run("return getComputedStyle(hits).gridTemplateColumns.split(' ').length")
        assert columns == 3
        small = page.run("""
            return [...document.querySelectorAll("button, .button, input[type=range]")]
              .filter((e) => e.checkVisibility())
              .map((e) => [e.textContent, e.getBoundingClientRect().height])
              .filter(([_, height]) => height < 32);
        """)
        assert small == []
        whole = page.hits()
        page.find("#draw").click()
        page.wait(lambda: page.hits() != whole)
        # A finger on the corner makes the box larger, one beside it scrolls.
        corner = page.run(
            "const r = corner.getBoundingClientRect();"
            "return [r.x + r.width / 2, r.y + r.height / 2]"
        )
        before = page.hits()
        touch(page, corner, (corner[0] + 80, corner[1] + 10))
        page.wait(lambda: page.hits() != before)
        assert page.run("return now.box[2] > 0.6 && now.box[0] === 0.25")
        page.find("summary").click()
        page.find("#where").send_keys("price > 1000")
        page.find("#more button").click()
        page.wait(lambda: page.text("#status").startswith("No hit"))
        page.wait(lambda: page.run("return head.getBoundingClientRect().bottom <= innerHeight"))
    finally:
        page.phone(False)


def touch(page: Browser, start: tuple[float, float], end: tuple[float, float]) -> None:
    for kind, points in (("Start", [start]), ("Move", [end]), ("Move", [end]), ("End", [])):
        page.driver.execute_cdp_cmd(
            "Input.dispatchTouchEvent",
            {"type": f"touch{kind}", "touchPoints": [{"x": x, "y": y} for x, y in points]},
        )


def test_nothing_is_fetched_from_elsewhere(page: Browser, service: Service, folder: Path) -> None:
    page.complaints()
    upload(page, folder / "b.png")
    page.find("#draw").click()
    page.settled()
    names = page.run("return performance.getEntriesByType('resource').map((e) => e.name)")
    assert len(names) > 5
    assert {name.startswith((service.url, f"blob:{service.url}", "data:")) for name in names} == {
        True
    }
    assert page.complaints() == []
    page.driver.get(service.url + "docs")
    assert "GET/search" in page.text("main").replace(" ", "")
    assert page.complaints() == []


def test_a_refusal_is_seen_from_below(page: Browser, folder: Path) -> None:
    upload(page, folder / "b.png")
    page.find("summary").click()
    page.find("#where").send_keys("shoe == 1")
    page.run("scrollTo(0, document.documentElement.scrollHeight)")
    page.find("#more button").click()
    page.wait(lambda: page.find("#error").is_displayed())
    top, bottom = page.run("const r = error.getBoundingClientRect(); return [r.top, r.bottom]")
    assert top >= 0 and bottom <= page.run("return innerHeight")


def test_a_long_name_and_a_long_caption_stay_small(page: Browser) -> None:
    """The end of a path is shown, which is the file's name; the title has it whole."""
    long = "camera/" * 40 + "the-last.jpg"
    hit = {"id": long, "score": 0.5, "metadata": {"caption": "word " * 400}}
    page.run("now.hits = [arguments[0]]; draw()", hit)
    tile = page.find("#hits button")
    assert tile.size["height"] < 2.5 * tile.size["width"]
    assert page.text("#hits .name").endswith("the-last.jpg")
    assert tile.get_attribute("title").startswith(f"Search by {long}\ncaption: word")


def test_a_refused_file_is_no_start_page(page: Browser, tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("no image")
    page.find("#file").send_keys(str(tmp_path / "notes.png"))
    page.wait(lambda: page.find("#error").is_displayed())
    assert page.text("#title") == "Similar images"
    assert not page.find("#others").is_displayed()
