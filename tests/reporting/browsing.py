"""A page in Chromium, with a record of whatever a report must not do."""

import shutil
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Locator, Page, Request

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Nothing resolves: a request that a fault lets through is recorded, and still goes nowhere.
OFFLINE = ["--host-resolver-rules=MAP * ~NOTFOUND", "--disable-quic"]
WIDE = """() => {
    const width = document.documentElement.clientWidth
    const seen = [...document.querySelectorAll("body *")].filter((e) => e.getBoundingClientRect().right > width + 0.5)
    return document.documentElement.scrollWidth <= width ? [] : seen.map((e) => e.outerHTML.slice(0, 120))
}"""


def chromium_path() -> str | None:
    """Return the path of an installed Chromium or Chrome."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


@cache
def axe() -> str:
    return (Path(__file__).parent / "axe" / "axe.min.js").read_text(encoding="utf-8")


class Visit:
    """A page that is open in Chromium.

    `trouble` has a line for each error in the console, uncaught exception, blocked script or style, request, dialog and
    new window. The fixture `open_page` fails a test that leaves any, unless the test has taken it with `take_trouble`.
    """

    def __init__(self, page: "Page", path: Path) -> None:
        self.page = page
        self.url = path.resolve().as_uri()
        self.trouble: list[str] = []
        page.on("console", lambda m: self._note(m.type, m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self._note("exception", str(error)))
        page.on("request", self._request)
        page.on("websocket", lambda socket: self._note("request", socket.url))
        page.on("popup", lambda other: self._note("window", other.url))
        page.on("crash", lambda _: self._note("crash", self.url))
        page.on("dialog", self._dialog)

    def _note(self, kind: str, text: str) -> None:
        self.trouble.append(f"{kind}: {text}")

    def _request(self, request: "Request") -> None:
        itself = request.is_navigation_request() and request.url.partition("#")[0] == self.url
        if not itself and not request.url.startswith(("data:", "blob:")):
            self._note("request", request.url)

    def _dialog(self, dialog: Any) -> None:
        self._note("dialog", dialog.message)
        dialog.dismiss()

    def take_trouble(self) -> list[str]:
        """Return the trouble so far, and forget it."""
        self.page.evaluate("() => new Promise((done) => setTimeout(done, 50))")  # events on the way here arrive first
        taken, self.trouble = self.trouble, []
        return taken

    def set_width(self, width: int, height: int = 800) -> None:
        self.page.set_viewport_size({"width": width, "height": height})

    def set_media(self, **media: Any) -> None:
        """Change `color_scheme`, `reduced_motion` or `media` (screen, print) of an open page."""
        self.page.emulate_media(**media)

    def too_wide(self) -> list[str]:
        """Return the elements that make the page scroll sideways."""
        found: list[str] = self.page.evaluate(WIDE)
        return found

    def violations(self) -> list[str]:
        """Return what axe-core finds serious or critical: the rule and the elements."""
        self.page.evaluate(axe())
        result = self.page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")
        return [
            f"{found['impact']}: {found['help']} ({found['id']}): {[node['html'][:160] for node in found['nodes'][:5]]}"
            for found in result["violations"]
            if found["impact"] in ("serious", "critical")
        ]

    def download(self, button: "Locator") -> tuple[str, bytes]:
        """Press a button, and return the name and the content of the file that comes."""
        with self.page.expect_download() as coming:
            button.click()
        return coming.value.suggested_filename, Path(coming.value.path()).read_bytes()


class Visitor:
    """Opens pages, each in a context of its own, and keeps what it has opened."""

    def __init__(self, browser: "Browser") -> None:
        self.browser = browser
        self.visits: list[Visit] = []
        self.contexts: list[BrowserContext] = []

    def __call__(self, path: Path, *, width: int = 1280, height: int = 800, **options: Any) -> Visit:
        """Open a file; `options` are those of a context of playwright: `color_scheme`, `bypass_csp`, ..."""
        context = self.browser.new_context(viewport={"width": width, "height": height}, **options)
        self.contexts.append(context)
        context.set_default_timeout(10_000)
        visit = Visit(context.new_page(), path)
        self.visits.append(visit)
        visit.page.goto(visit.url)
        return visit

    def close(self) -> list[str]:
        """Close every page; return their trouble."""
        trouble = [line for visit in self.visits for line in visit.take_trouble()]
        for context in self.contexts:
            context.close()
        return trouble
