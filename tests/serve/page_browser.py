"""A browser for tests of the page, which notes whatever leaves the origin, fails or is written to the console."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SOON = 5_000
"""Milliseconds that a page may take for what it does at once."""

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="the page is tested with playwright: pip install playwright"
)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="the page is tested in chromium, which is not on the path")
expect = sync_api.expect


@contextmanager
def opened() -> Iterator[Any]:
    """A browser."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@dataclass
class Seen:
    """What a page did that it should not.  A reading of figures that a reload cuts short is no failure."""

    origin: str
    outside: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def watch(self, page: Any) -> None:
        page.on("request", lambda sent: None if sent.url.startswith(self.origin) else self.outside.append(sent.url))
        page.on("requestfailed", lambda sent: self.failed.append(sent.url) if sent.method == "POST" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda said: self.complaints.append(said.text) if unexpected(said) else None)


def unexpected(said: Any) -> bool:
    """Chromium itself logs every answer of 4xx and 5xx; the page says those where they belong."""
    refused = re.match(r"Failed to load resource: the server responded with a status of (401|429)", said.text)
    return said.type in {"error", "warning"} and not refused


@contextmanager
def visited(browser: Any, url: str) -> Iterator[tuple[Any, Seen]]:
    """A page in a context of its own, before the key is typed."""
    context, seen = browser.new_context(), Seen(url)
    page = context.new_page()
    page.set_default_timeout(SOON)
    seen.watch(page)
    page.goto(url)
    yield page, seen
    context.close()


def enter(page: Any, key: str) -> None:
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Open").click()


def card(page: Any, tone: str) -> Any:
    return page.locator(f".answer[data-tone={tone}]")


def text_of(page: Any, tone: str) -> Any:
    return card(page, tone).locator(".text")


def ask(page: Any, prompt: str = "how deep is it?") -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_role("button", name="Ask").click()
