"""Open pages in headless Chromium, from disk or from a server on this machine."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start the system's Chromium.

    If Chromium is not installed, the tests that use it are skipped. With
    FLAP_REQUIRE_SYSTEM_TOOLS=1 in the environment, these tests fail instead of being skipped.
    """
    path = shutil.which("chromium")
    if path is None:
        required = os.environ.get("FLAP_REQUIRE_SYSTEM_TOOLS") == "1"
        (pytest.fail if required else pytest.skip)("no chromium on the PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=QUIET)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, address: str, **settings: Any) -> Iterator[Page]:
    """Open a page for the duration of a `with` block.

    The test fails if the page raises an error or writes to the console, or if one of its requests
    fails or goes to another machine.

    settings: options of the browser context, such as its viewport.
    """
    host = "/".join(address.split("/")[:3])  # for example "file://" or "http://127.0.0.1:8000"
    own = (host, "data:", "blob:")
    settings = {"viewport": {"width": 1300, "height": 900}} | settings
    context = browser.new_context(offline=host == "file://", **settings)
    context.set_default_timeout(30_000)
    page = context.new_page()
    trouble = []
    page.on("console", lambda message: trouble.append(message.text))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("requestfailed", lambda request: trouble.append(f"failed: {request.url}"))
    page.on("request", lambda request: request.url.startswith(own) or trouble.append(request.url))
    page.goto(address)
    yield page
    context.close()
    assert trouble == []
