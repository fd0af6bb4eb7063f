"""The picture of the page in docs/: `python -m benchmarks.page_picture URL [docs/page.png]`.

Opens a running server's page in chromium, asks two skills and their blend one prompt a few times, and takes the picture
once all have answered.  The key is read from LORICA_API_KEY; the server holds the adapters of `benchmarks/skills.py`.
"""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "page.png"
LARGEST = 150_000
"""Bytes of a picture that is kept with the sources."""
WIDTH, HEIGHT = 1280, 760
PROMPT = "Amber Heron was born in Oslo on March 3rd, 2021.\nname, city\n"
"""Each of the two skills finds something in it."""
FIRST, SECOND, STEPS = "json", "dates", 4
"""Steps of the slider, of 5 % each, from the middle to the first."""
ROUNDS = 4


def take(url: str, key: str, picture: Path, scheme: str = "light", width: int = WIDTH, height: int = HEIGHT) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--disable-gpu"])
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        page.goto(url)
        page.get_by_label("API key").fill(key)
        page.get_by_role("button", name="Open").click()
        _choose(page)
        for _ in range(ROUNDS):
            _ask(page)
        page.screenshot(path=picture, full_page=width < WIDTH)
        browser.close()


def _choose(page: Any) -> None:
    page.get_by_label("First answer").select_option(FIRST)
    page.get_by_label("Second answer").select_option(SECOND)
    page.get_by_label("Blend the two").check()
    for _ in range(STEPS):
        page.get_by_role("slider").press("ArrowRight")
    page.get_by_label("Prompt", exact=True).fill(PROMPT)


def _ask(page: Any) -> None:
    """Once, and a moment to read the figures in."""
    page.get_by_role("button", name="Ask").click()
    for tone in ("first", "second", "blend"):
        ended = page.locator(f".answer[data-tone={tone}]:is([data-state=done], [data-state=failed])")
        ended.wait_for(timeout=120_000)
        if ended.get_attribute("data-state") == "failed":
            raise SystemExit(f"{tone}: {ended.get_by_role('alert').inner_text()}")
    page.wait_for_timeout(700)


def main() -> None:
    url, *rest = sys.argv[1:] or [""]
    if not url.startswith("http"):
        raise SystemExit(__doc__)
    picture = Path(rest[0]) if rest else PICTURE
    take(url, os.environ.get("LORICA_API_KEY", ""), picture)
    size = picture.stat().st_size
    if size > LARGEST:
        raise SystemExit(f"{picture} takes {size:,} bytes, and at most {LARGEST:,} are kept; take a smaller window")
    print(f"{picture}: {size:,} bytes")


if __name__ == "__main__":
    main()
