"""Debian's Chromium without a network: a page that complains, or asks for something outside of it, fails its test."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--no-first-run"]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium of the system; without one the tests are skipped, unless they are required."""
    path = shutil.which("chromium")
    if path is None:
        required = os.environ.get("FLAP_REQUIRE_SYSTEM_TOOLS") == "1"
        (pytest.fail if required else pytest.skip)("no chromium on the PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=QUIET)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, path: Path, width: int = 1300, **options: Any) -> Iterator[Page]:
    """A page, opened from disk; whatever it complains of or asks the network for fails the test."""
    context = browser.new_context(offline=True, viewport={"width": width, "height": 900}, **options)
    context.set_default_timeout(30_000)
    page, trouble = context.new_page(), []
    page.on("console", lambda message: trouble.append(message.text))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("requestfailed", lambda request: trouble.append(f"failed: {request.url}"))
    page.on("request", lambda request: request.url.startswith(("file:", "data:")) or trouble.append(request.url))
    page.goto(path.as_uri())
    yield page
    context.close()
    assert trouble == []
