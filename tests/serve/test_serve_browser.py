"""The search page in a real browser."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx2 as httpx
import pytest
from PIL import Image

from chromium import Browser, upload
from helpers import draw
from pictures import encode
from service import EVIL, Service

pytestmark = pytest.mark.slow


def expected(service: Service, path: Path | None = None, **data: object) -> list[str]:
    files = None if path is None else {"image": ("x", path.read_bytes())}
    fields = {"k": 24, **data}
    answer = httpx.post(service.url + "search", files=files, data=fields)
    return [hit["id"] for hit in answer.json()["hits"]]


def test_the_first_look(page: Browser) -> None:
    assert len(page.hits()) == 24
    assert page.text("#status").startswith("24 of 34")
    assert page.text("#about") == "34 images, model colour_teachers:make"
    page.find("#others").click()
    page.settled()
    assert len(page.hits()) == 24


def test_upload_and_click_through_and_back(page: Browser, service: Service, folder: Path) -> None:
    upload(page, folder / "b.png")
    hits = page.hits()
    assert [name for name, _ in hits] == expected(service, folder / "b.png")
    assert {name[0] for name, _ in hits[:4]} == {"b"}
    scores = [score for _, score in hits]
    assert scores == sorted(scores, reverse=True)
    assert page.text("#status") == "24 hits" and page.text("#title") == "Similar images"
    assert page.run("return document.activeElement.id") == "title"
    shown = page.run("return [shown.naturalWidth, shown.naturalHeight, shown.alt]")
    assert shown == [240, 240, "The query"]

    page.find("#hits li:nth-child(6) button").click()
    chosen = hits[5][0]
    page.wait(lambda: page.hits()[0][0] == chosen)
    assert parse_qs(urlsplit(page.driver.current_url).query) == {"id": [chosen]}
    assert [name for name, _ in page.hits()] == expected(service, id=chosen)
    assert page.hits()[0][1] == 1.0

    page.driver.back()
    page.wait(lambda: page.hits() == hits)
    assert page.text("#named") == "b.png"
    assert urlsplit(page.driver.current_url).query == ""
    page.driver.back()
    page.wait(lambda: page.text("#title") == "Images")
    assert not page.find("#stage").is_displayed()
    page.driver.forward()
    page.wait(lambda: page.hits() == hits)
    page.driver.refresh()
    page.settled()
    assert "forgotten" in page.text("#error")


def test_thumbnails_are_the_images(page: Browser, folder: Path) -> None:
    upload(page, folder / "b.png")
    script = """
        const all = [...document.querySelectorAll("#hits img")].slice(0, 4);
        const canvas = document.createElement("canvas").getContext("2d");
        return all.length === 4 && all.every((i) => i.complete) && all.map((image) => {
          canvas.drawImage(image, 0, 0);
          return [image.naturalWidth, ...canvas.getImageData(5, 5, 1, 1).data.slice(0, 3)];
        });
    """
    for (name, _), (width, *colour) in zip(
        page.hits(), page.wait(lambda: page.run(script)), strict=False
    ):
        image = Image.open(folder / "images" / name)
        assert width == 240
        assert colour == pytest.approx(image.getpixel((5, 5)), abs=6)


@pytest.mark.parametrize("event", ["paste", "drop"])
def test_paste_and_drop(page: Browser, service: Service, folder: Path, event: str) -> None:
    page.transfer(event, {"b.png": (folder / "b.png").read_bytes()})
    page.wait(lambda: page.text("#named") == "b.png")
    page.settled()
    assert [name for name, _ in page.hits()] == expected(service, folder / "b.png")


def test_a_box_that_is_drawn(page: Browser, service: Service, folder: Path) -> None:
    from selenium.webdriver import ActionChains

    upload(page, folder / "query.png")
    whole = page.hits()
    image = page.find("#shown")
    width, height = image.size["width"], image.size["height"]
    assert width / height == pytest.approx(2, abs=0.02)
    drag = ActionChains(page.driver).move_to_element_with_offset(image, 2, 2 - height // 2)
    drag.click_and_hold().move_by_offset(width // 2 - 6, height - 6).release().perform()
    page.wait(lambda: page.hits() != whole)
    assert {name[0] for name, _ in page.hits()[:4]} == {"d"}
    assert page.find("#box").is_displayed()

    # Moved to the left half by dragging its middle, then taken away.
    right = page.hits()
    box = page.find("#box")
    drag = ActionChains(page.driver).move_to_element(box).click_and_hold()
    drag.move_by_offset(-(width // 2), 0).release().perform()
    page.wait(lambda: page.hits() != right)
    assert {name[0] for name, _ in page.hits()[:4]} == {"a"}
    page.find("#whole").click()
    page.wait(lambda: page.hits() == whole)
    assert not page.find("#box").is_displayed()


def test_a_box_by_keyboard(page: Browser, service: Service, folder: Path) -> None:
    from selenium.webdriver import Keys

    page.open(service.url + "?id=wide.png")
    whole = page.hits()
    page.wait(lambda: page.find("#draw").is_displayed())
    page.find("#draw").send_keys(Keys.ENTER)
    page.wait(lambda: page.hits() != whole)
    assert [n for n, _ in page.hits()] == expected(service, id="wide.png", box="120,60,240,120")
    box = page.find("#box")
    assert page.run("return document.activeElement.id") == "box"
    for _ in range(13):
        box.send_keys(Keys.ARROW_RIGHT)  # as far as it goes
    box.send_keys(Keys.SHIFT + Keys.ARROW_LEFT)
    wanted = expected(service, id="wide.png", box="240,60,230.4,120")
    page.wait(lambda: [name for name, _ in page.hits()] == wanted)
    fields = parse_qs(urlsplit(page.driver.current_url).query)
    assert fields == {"id": ["wide.png"], "box": ["0.5000,0.2500,0.4800,0.5000"]}
    box.send_keys(Keys.DELETE)
    page.wait(lambda: page.hits() == whole)
    page.driver.back()  # all the steps are one
    page.wait(lambda: page.find("#box").is_displayed())
    page.driver.back()
    page.wait(lambda: not page.find("#box").is_displayed())


def test_a_link_to_a_box(page: Browser, service: Service) -> None:
    # Dragged to an edge, a box begins next to nothing from it.
    page.open(service.url + "?id=wide.png&box=0.5,1e-17,0.5,0.9")
    wanted = expected(service, id="wide.png", box="240,0,240,216")
    assert [name for name, _ in page.hits()] == wanted
    page.open(service.url + "?id=wide.png&box=0.5,0,0.5,1")
    wanted = expected(service, id="wide.png", box="240,0,240,240")
    assert [name for name, _ in page.hits()] == wanted
    assert wanted[0][0] == "d"


def test_the_threshold(page: Browser, folder: Path) -> None:
    from selenium.webdriver import Keys

    upload(page, folder / "b.png")
    hits = page.hits()
    script = "least.value = arguments[0]; least.dispatchEvent(new Event('input'))"
    page.run(script, "0.8")
    assert page.hits() == [(name, score) for name, score in hits if score and score >= 0.8]
    assert page.text("#at") == "0.80"
    assert page.text("#status") == f"{len(page.hits())} hits"
    page.find("#least").send_keys(Keys.END)
    assert page.hits() == []
    assert re.fullmatch(
        r"No hit: the most similar image has \d\.\d\d\. Lower the threshold\.", page.text("#status")
    )
    page.find("#least").send_keys(Keys.HOME)
    assert page.hits() == hits and page.text("#at") == "any"


def test_filter_and_number(page: Browser, service: Service, folder: Path) -> None:
    upload(page, folder / "b.png")
    page.find("summary").click()
    assert page.text("#columns").endswith("Columns: id, group, price (int).")
    page.find("#k").clear()
    page.find("#k").send_keys("5")
    page.find("#where").send_keys("price >= 2")
    page.find("#more button").click()
    page.wait(lambda: len(page.hits()) == 5)
    wanted = expected(service, folder / "b.png", where="price >= 2", k=5)
    assert [name for name, _ in page.hits()] == wanted
    page.find("#where").send_keys(" and shoe == 1")
    page.find("#more button").click()
    page.wait(lambda: page.find("#error").is_displayed())
    assert "There is no column 'shoe'" in page.text("#error")
    assert page.hits() == []
    page.find("#where").clear()
    page.find("#where").send_keys("price > 1000")
    page.find("#more button").click()
    page.wait(lambda: page.text("#status") == "No hit: no image passes the filter.")


def test_a_slow_service_is_seen_to_be_asked(page: Browser, service: Service) -> None:
    page.run("window.fetch = () => new Promise(() => {}); start();")
    assert page.text("#status") == "Loading…"
    assert page.run("return hits.getAttribute('aria-busy')") == "true"


def test_an_answer_of_a_proxy(page: Browser, service: Service) -> None:
    page.run("window.fetch = async () => new Response('{\"message\": 5}', { status: 502 }); run();")
    page.wait(lambda: page.find("#error").is_displayed())
    assert page.text("#error p") == "The service answered 502."


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("notes.png", b"not an image at all", "Not an image, or of an unknown format."),
        ("none.png", b"", "Empty file."),
        ("cut.png", encode(draw(0, 0, 240))[:300], "Damaged: "),
        ("large.png", bytes(2_100_000), "This file has 2.1 MB, at most 2 MB can be sent."),
    ],
)
def test_files_that_are_refused(
    page: Browser, service: Service, folder: Path, name: str, data: bytes, message: str
) -> None:
    (folder / name).write_bytes(data)
    page.find("#file").send_keys(str(folder / name))
    page.wait(lambda: page.find("#error").is_displayed())
    assert message in page.text("#error")
    assert page.find("#error").get_attribute("role") == "alert"
    upload(page, folder / "b.png")  # the next one is searched
    assert not page.find("#error").is_displayed() and len(page.hits()) == 24


def test_an_id_that_is_not_there(page: Browser, service: Service) -> None:
    page.open(service.url + "?id=nothing")
    assert "There is no image 'nothing'." in page.text("#error")


def test_names_are_text(page: Browser, service: Service) -> None:
    page.open(f"{service.url}?id={EVIL}.png".replace("<", "%3C").replace(">", "%3E"))
    assert page.hits()[0][0] == f"{EVIL}.png"
    assert page.text("#named") == f"{EVIL}.png"
    assert page.driver.title == "Visual search"


def test_a_token_is_asked_for(chromium: Browser, folder: Path) -> None:
    from selenium.webdriver import Keys

    with Service(folder / "index", code=folder / "code", token="rose-17") as guarded:
        chromium.open(guarded.url)
        assert chromium.find("#ask").is_displayed() and chromium.hits() == []
        chromium.find("#token").send_keys("rose-16", Keys.ENTER)
        chromium.wait(lambda: chromium.find("#wrong").is_displayed())
        chromium.find("#token").send_keys("rose-17", Keys.ENTER)
        chromium.wait(lambda: len(chromium.hits()) == 24)
        assert not chromium.find("#ask").is_displayed()
        script = "return document.querySelectorAll('#hits img').length"
        chromium.wait(lambda: chromium.run(script) >= 4)  # which are behind the token, too
        upload(chromium, folder / "b.png")
        assert {name[0] for name, _ in chromium.hits()[:4]} == {"b"}
        assert "rose" not in chromium.driver.current_url
        assert chromium.run("return document.cookie") == ""


def test_a_service_that_is_gone_and_comes_back(chromium: Browser, folder: Path) -> None:
    code = folder / "code"
    with Service(folder / "index", code=code) as first:
        chromium.open(first.url)
        first.end(signal.SIGINT)
        chromium.find("#file").send_keys(str(folder / "b.png"))
        chromium.wait(lambda: chromium.find("#error").is_displayed())
        assert "The service does not answer. Is it still running?" in chromium.text("#error")
    port = urlsplit(first.url).port
    with Service(folder / "index", code=code, port=port):
        chromium.find("#again").click()
        chromium.wait(lambda: chromium.hits())
        assert {name[0] for name, _ in chromium.hits()[:4]} == {"b"}
        assert not chromium.find("#error").is_displayed()
