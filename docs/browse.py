"""Open every page of the built site in headless Chromium: no error, no other host, no sideways scroll, search works.

`make docs` first. Screenshots of some pages with `--shots FOLDER`. Needs Chromium and playwright.
"""

import argparse
import functools
import http.server
import importlib.util
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SITE = Path(__file__).resolve().parent.parent / "_docs" / "html"
NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--no-first-run"]
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
BETWEEN = [{"width": width, "height": 900} for width in (700, 1100, 1200, 1400)]
LOOKED_AT = ("index", "tour", "results", "stages/representation", "stages/suite", "report/06_profile", "api/clarid")
SCROLLS = "() => [...document.querySelectorAll('pre')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
OVERFLOW = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"


def chromium() -> str | None:
    """The browser: that of the variable `CHROMIUM`, or the first of `NAMES` on the path."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


def why_not() -> str:
    """What a look at the site lacks, as one sentence; empty where nothing is lacking."""
    if not chromium():
        return "no Chromium: `apt-get install chromium`, or name it in the variable CHROMIUM"
    if importlib.util.find_spec("playwright") is None:
        return "no playwright: `pip install playwright` (without its browsers)"
    return ""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextmanager
def served(site: Path) -> Iterator[str]:
    """The address of a server of a folder on this machine."""
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def browser_page(**options):
    """A page of headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium(), args=FLAGS)
        try:
            yield browser.new_page(**options)
        finally:
            browser.close()


def all_pages(site: Path) -> list[str]:
    return sorted(str(p.relative_to(site).with_suffix("")) for p in site.rglob("*.html"))


def problems(site: Path, pages: list[str], shots: Path | None = None) -> Iterator[str]:
    """What is wrong with pages of a site; pictures of those in `LOOKED_AT` go to `shots`."""
    with served(site) as home, browser_page(viewport=WIDE) as page:
        found = []
        page.on("console", lambda m: m.type in ("error", "warning") and found.append(f"console: {m.text}"))
        page.on("pageerror", lambda e: found.append(f"error: {e}"))
        page.on("request", lambda r: r.url.startswith((home, "data:")) or found.append(f"asks another host: {r.url}"))
        page.on("response", lambda r: r.status < 400 or found.append(f"{r.status}: {r.url.removeprefix(home)}"))
        for name in pages:
            found.clear()
            page.set_viewport_size(WIDE)
            page.goto(f"{home}/{name}.html", wait_until="load")
            if count := page.evaluate(SCROLLS):
                found.append(f"{count} code blocks scroll sideways at {WIDE['width']} px")
            for size in (WIDE, *BETWEEN, PHONE):
                page.set_viewport_size(size)
                if (excess := page.evaluate(OVERFLOW)) > 0:
                    found.append(f"the page is {excess} px wider than {size['width']} px")
                for scheme in ("light", "dark") if shots and name in LOOKED_AT and size not in BETWEEN else ():
                    page.emulate_media(color_scheme=scheme)
                    file = shots / f"{name.replace('/', '-')}-{size['width']}-{scheme}.png"
                    page.screenshot(path=file, full_page=True)
                    page.emulate_media(color_scheme="light")
            yield from (f"{name}.html: {text}" for text in found)


def habits(site: Path) -> Iterator[str]:
    """What the site as a whole does not do: find a name, turn dark."""
    with served(site) as home, browser_page(viewport=WIDE) as page:
        if not any(link.startswith("clarid/") for link in hits(page, home, "right_singular_vectors")):
            yield "search.html: does not find right_singular_vectors in the room clarid"
        if not is_dark(page, home):
            yield "index.html: is not dark where dark is asked for"


def hits(page, home: str, word: str) -> list[str]:
    """The pages that the search finds."""
    page.goto(f"{home}/search.html?q={word}")
    page.wait_for_function("() => document.querySelector('#search-results p')?.innerText.match(/found|did not match/)")
    links = page.eval_on_selector_all("#search-results ul.search li a", "all => all.map(a => a.getAttribute('href'))")
    return [link.split("?")[0].split("#")[0] for link in links]


def is_dark(page, home: str) -> bool:
    """Whether the background of the front page is dark for a reader who asks for dark."""
    page.emulate_media(color_scheme="dark")
    page.goto(f"{home}/index.html")
    color = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    return sum(int(part) for part in color.removeprefix("rgb(").rstrip(")").split(",")) < 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shots", type=Path, help="folder for pictures of some pages, at both widths, light and dark")
    parser.add_argument("pages", nargs="*", help="such as clarid/01_jacobian; all unless some are named")
    args = parser.parse_args()
    if reason := why_not():
        sys.exit(f"error: {reason}")
    if not (SITE / "index.html").is_file():
        sys.exit("error: there is no site in _docs/html; run `make docs`")
    if args.shots:
        args.shots.mkdir(parents=True, exist_ok=True)
    if wrong := [*problems(SITE, args.pages or all_pages(SITE), args.shots), *habits(SITE)]:
        sys.exit("error: the site in Chromium:\n  " + "\n  ".join(wrong))
    print("in Chromium no page has an error, asks another host or scrolls sideways; search and dark mode work")


if __name__ == "__main__":
    main()
