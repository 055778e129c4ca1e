"""The page in a real browser, as people use it: Chromium on a desktop and as a phone, from the command `serve`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from selenium.webdriver import ActionChains, Chrome, ChromeOptions, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from finetune import FineTuner
from tests.helpers.image_files import picture
from tests.helpers.processes import ROOT

DRIVER, BROWSER = shutil.which("chromedriver"), shutil.which("chromium")
SWITCHES = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1100,900",
)  # fmt: skip
BREEDS = ("beagle", "husky", "사모예드")

pytestmark = pytest.mark.skipif(
    DRIVER is None or BROWSER is None, reason="needs Debian's chromium and chromium-driver, which .ci/run installs"
)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server with the model of three breeds."""
    folder = tmp_path_factory.mktemp("served")
    tuner = FineTuner("shufflenet_v2_x0_5", weights=None, device="cpu", preprocessing={"crop_size": 32})
    tuner.replace_head(3).classes = BREEDS
    tuner.save_checkpoint(folder / "dogs.safetensors")
    info = "class,text,link\n" + "".join(f"{breed},About a {breed}.,https://example.org\n" for breed in BREEDS)
    (folder / "breeds.csv").write_text(info, "utf-8")
    command = [sys.executable, "-m", "finetune", "serve", "dogs.safetensors", "--info", "breeds.csv", "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield next(word for word in server.stdout.readline().split() if word.startswith("http://"))
        server.terminate()


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    """Paths of three images, of a text file with the name of one, and of an empty file."""
    for seed in range(3):
        picture(seed, size=(120, 90)).save(tmp_path / f"{seed}.png")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").touch()
    Image.new("1", (9000, 9000)).save(tmp_path / "large.png")
    return [str(tmp_path / f"{name}.png") for name in ("0", "1", "2", "text", "empty", "large")]


class Visitor:
    """A browser with a page open."""

    def __init__(
        self, url: str, folder: Path, *, dark: bool = False, phone: bool = False, language: str = "en"
    ) -> None:
        options = ChromeOptions()
        options.binary_location = str(BROWSER)
        for switch in (*SWITCHES, f"--user-data-dir={folder}", f"--accept-lang={language}"):
            options.add_argument(switch)
        options.add_experimental_option("prefs", {"intl.accept_languages": language})
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})  # type: ignore[no-untyped-call]
        self.browser = Chrome(options, Service(str(DRIVER)))
        themes = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": themes})  # type: ignore[no-untyped-call]
        if phone:
            size = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
            self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)  # type: ignore[no-untyped-call]
            self.browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})  # type: ignore[no-untyped-call]
        self.browser.get(url)

    def __enter__(self) -> Visitor:
        return self

    def __exit__(self, *error: object) -> None:
        self.browser.quit()

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)  # type: ignore[no-untyped-call]

    def choose(self, *paths: str) -> None:
        self.browser.find_element(By.ID, "files").send_keys("\n".join(paths))

    def answers(self, count: int) -> list[str]:
        """Wait until so many uploads are answered, and return what stands on their cards, the last one first."""
        found = "return [...document.querySelectorAll('.answer')].map(each => each.textContent)"
        working = self.run("return JSON.parse(document.getElementById('facts').textContent).words.working")
        WebDriverWait(self.browser, 20).until(
            lambda _: len(texts := self.run(found)) == count and working not in texts and all(texts)
        )
        return [str(text) for text in self.run(found)]

    def click_and_wait(self, button: Any, name: str, value: str) -> None:
        """Click a button and wait until an attribute of it has a value and its picture is there."""
        button.click()
        ready = "return arguments[0].closest('.card').querySelector('img').complete"
        WebDriverWait(self.browser, 20).until(lambda _: button.get_attribute(name) == value and self.run(ready, button))

    def violations(self) -> list[str]:
        """Return the rules of accessibility that the page breaks."""
        self.run(files("axe_core_python").joinpath("axe.min.js").read_text())
        found = self.browser.execute_async_script("axe.run().then(arguments[0])")  # type: ignore[no-untyped-call]
        return [f"{each['id']}: {each['nodes'][0]['html']}" for each in found["violations"]]

    def errors(self) -> list[str]:
        """Return the errors in the console but those of files that were refused."""
        log = self.browser.get_log("browser")  # type: ignore[no-untyped-call]
        return [each["message"] for each in log if "/api/predict" not in each["message"]]

    def overflow(self) -> int:
        """Return by how many pixels the page is wider than the window."""
        return int(self.run("return document.documentElement.scrollWidth - innerWidth"))


def test_pictures_are_answered_and_wrong_files_refused(url: str, pictures: list[str], tmp_path: Path) -> None:
    with Visitor(url, tmp_path / "profile") as visitor:
        visitor.choose(*pictures)
        large, empty, text, *breeds = visitor.answers(6)
        assert set(breeds) <= set(BREEDS)
        assert "not a picture" in text
        assert "empty" in empty
        assert "50 megapixels" in large
        card = visitor.browser.find_elements(By.CLASS_NAME, "card")[-1]
        assert card.find_element(By.TAG_NAME, "h3").text == "0.png"
        assert f"About a {breeds[-1]}." in card.text
        assert visitor.run("return arguments[0].querySelector('img').naturalWidth", card) == 120
        visitor.click_and_wait(card.find_element(By.CSS_SELECTOR, ".more button"), "aria-pressed", "true")
        assert visitor.run("return arguments[0].querySelector('img').naturalWidth", card) == 32
        visitor.click_and_wait(card.find_element(By.CSS_SELECTOR, ".more button"), "aria-pressed", "false")
        assert visitor.run("return arguments[0].querySelector('img').src", card).startswith("blob:")
        widths = visitor.run(
            "return [...arguments[0].querySelectorAll('.bar i')].map(i => parseFloat(i.style.width))", card
        )
        assert sum(widths) == pytest.approx(100, abs=0.1)
        assert visitor.violations() == []
        visitor.browser.find_element(By.ID, "clear").click()
        assert visitor.answers(0) == []
        assert visitor.errors() == []


def test_a_picture_is_pasted_and_dropped(url: str, tmp_path: Path) -> None:
    script = """
        const canvas = Object.assign(document.createElement("canvas"), { width: 64, height: 64 });
        canvas.getContext("2d").fillRect(0, 0, 20, 20);
        const [kind, field] = arguments, done = arguments[2];
        canvas.toBlob((blob) => {
            const data = new DataTransfer();
            data.items.add(new File([blob], "image.png", { type: "image/png" }));
            const made = kind === "paste" ? ClipboardEvent : DragEvent;
            window.dispatchEvent(new made(kind, { [field]: data, cancelable: true }));
            done();
        });
    """
    with Visitor(url, tmp_path / "profile") as visitor:
        for number, (kind, field) in enumerate([("paste", "clipboardData"), ("drop", "dataTransfer")], 1):
            visitor.browser.execute_async_script(script, kind, field)  # type: ignore[no-untyped-call]
            assert visitor.answers(number)[0] in BREEDS
        assert visitor.errors() == []


def test_a_phone_in_korean_and_in_the_dark(url: str, pictures: list[str], tmp_path: Path) -> None:
    with Visitor(url, tmp_path / "profile", dark=True, phone=True, language="ko") as visitor:
        assert visitor.run("return document.documentElement.lang") == "ko"
        visitor.choose(*pictures[:4])
        assert "사진 파일이 아닙니다" in visitor.answers(4)[0]
        assert visitor.browser.find_element(By.CLASS_NAME, "camera").is_displayed()
        background = visitor.run("return getComputedStyle(document.body).backgroundColor")
        assert max(map(int, background.removeprefix("rgb(").removesuffix(")").split(","))) < 64
        assert visitor.overflow() == 0
        assert visitor.violations() == []
        assert visitor.errors() == []


def test_the_page_is_used_by_keyboard(url: str, pictures: list[str], tmp_path: Path) -> None:
    with Visitor(url, tmp_path / "profile") as visitor:
        visitor.choose(pictures[0])
        visitor.answers(1)
        reached = []
        for _ in range(6):
            ActionChains(visitor.browser).send_keys(Keys.TAB).perform()
            reached.append(visitor.run("return document.activeElement.id || document.activeElement.className"))
        assert reached[:2] == ["skip", "files"]
        assert "remove" in reached
