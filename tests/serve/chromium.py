"""A real browser without a screen."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

MISSING = "needs Chromium: apt-get install -y chromium chromium-driver"
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}

Found = TypeVar("Found")


class Browser:
    """Chromium with a fresh profile, driven by Debian's chromedriver; a context."""

    def __init__(self, profile: Path) -> None:
        chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
        if chromium is None or driver is None:
            pytest.skip(MISSING)
        webdriver = pytest.importorskip("selenium.webdriver")
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for argument in (
            *("--headless=new", "--window-size=1280,900", f"--user-data-dir={profile}"),
            *("--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking"),
            *(["--no-sandbox"] if os.geteuid() == 0 else []),  # which root cannot have
        ):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        service = webdriver.ChromeService(executable_path=driver)  # else selenium looks for one
        self.driver = webdriver.Chrome(options=options, service=service)
        self.driver.set_page_load_timeout(60)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.driver.quit()

    def open(self, url: str) -> None:
        self.driver.get("about:blank")
        self.driver.get(url)
        self.settled()

    def run(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def wait(self, condition: Callable[[], Found]) -> Found:
        """The condition's first value that is true."""
        end = time.monotonic() + 20
        while not (found := condition()):
            assert time.monotonic() < end, f"waited in vain: {self.text('main')}"
            time.sleep(0.05)
        return found

    def settled(self) -> None:
        """Wait until the page has its answer, or its refusal, or asks for a token."""
        script = (
            "return document.readyState === 'complete' && (document.querySelector('dialog')?.open"
            " || !document.getElementById('error').hidden || (!document.querySelector('.busy') &&"
            " !/^(Searching…|)$/.test(document.getElementById('status').textContent)))"
        )
        self.wait(lambda: self.run(script))

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def text(self, selector: str) -> str:
        return str(self.find(selector).text)

    def hits(self) -> list[tuple[str, float | None]]:
        """Id and score of each hit that is shown."""
        script = (
            "return [...document.querySelectorAll('#hits button')].map((b) =>"
            " [b.dataset.id, b.querySelector('.score')?.textContent])"
        )
        return [(name, score and float(score)) for name, score in self.run(script)]

    def transfer(self, event: str, files: dict[str, bytes]) -> None:
        """Paste or drop files."""
        script = """
            const [kind, files] = arguments;
            const data = new DataTransfer();
            for (const [name, bytes] of files) {
              data.items.add(new File([new Uint8Array(bytes)], name, { type: "image/png" }));
            }
            const init = { bubbles: true, cancelable: true };
            document.body.dispatchEvent(kind === "paste"
              ? new ClipboardEvent(kind, { ...init, clipboardData: data })
              : new DragEvent(kind, { ...init, dataTransfer: data }));
        """
        self.run(script, event, [[name, list(data)] for name, data in files.items()])

    def phone(self, is_on: bool) -> None:
        if is_on:
            self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
        else:
            self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    def scheme(self, name: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": name}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def complaints(self) -> list[str]:
        """What the console has to say, such as of a broken policy."""
        levels = ("WARNING", "SEVERE")
        log = self.driver.get_log("browser")
        return [json.dumps(entry["message"]) for entry in log if entry["level"] in levels]


def upload(page: Browser, path: Path) -> None:
    page.find("#file").send_keys(str(path))
    page.wait(lambda: page.text("#named") == path.name)
    page.settled()
