"""The pictures of the review page in docs/: python tests/review_screenshots.py RUN docs/images"""

import sys
import tempfile
from pathlib import Path

from review_pages import start_browser

from fastac.review import review

# What is pressed before the picture, and the window.
SHOTS = {
    "review-page.png": ("light", (1360, 860), ["r", "r", "d", "u", "k", "r", "r"], None),
    "review-pair.png": ("dark", (1360, 860), ["r", "r", "u", "r"], "#pairs button"),
    "review-class.png": ("light", (1360, 860), ["ArrowRight", "c"], None),
    "review-narrow.png": ("light", (420, 860), ["r", "r"], None),
}
PRESS = """
for (const key of arguments[0]) {
  document.getElementById("gallery").dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
}
const done = arguments[1], frame = () => new Promise(requestAnimationFrame);
frame().then(frame).then(() => Promise.all([...document.images].map((image) => image.decode())))
  .then(frame).then(frame).then(() => done());
"""


def main(run: Path, images: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        page = review(run, output=Path(folder) / "page.html")
        browser = start_browser(Path(folder) / "profile", Path(folder))
        try:
            for name, (theme, size, keys, click) in SHOTS.items():
                shoot(browser, page, images / name, theme, size, keys, click)
        finally:
            browser.quit()


def shoot(browser, page, out, theme, size, keys, click) -> None:
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    media = {"prefers-color-scheme": theme, "prefers-reduced-motion": "reduce"}
    features = [{"name": name, "value": value} for name, value in media.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    clear = {"origin": "file://", "storageTypes": "local_storage"}
    browser.execute_cdp_cmd("Storage.clearDataForOrigin", clear)
    browser.get(page.as_uri())
    if click is not None:
        browser.execute_script("document.querySelector(arguments[0]).click()", click)
    browser.execute_async_script(PRESS, keys)
    browser.save_screenshot(str(out))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
