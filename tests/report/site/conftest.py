import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

# No sandbox: CI is root. The rest keeps the browser from asking anything of the network by itself.
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
ARGUMENTS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")  # no longer: playwright's event loop runs in this thread while it lives
def browser() -> Iterator[Browser]:
    """Debian's Chromium, headless; CI always has it."""
    binary = Path(os.environ.get("AMR_CHROMIUM", "/usr/bin/chromium"))
    if not binary.is_file():
        reason = f"no {binary}; apt-get install chromium fonts-dejavu-core, or set AMR_CHROMIUM"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=binary, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """An empty page with storage of its own; the test fails if a script of it does."""
    context = browser.new_context()
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    yield page
    context.close()
    assert not errors, errors


@pytest.fixture
def watched(page: Page, address: str) -> Iterator[Page]:
    """A page of which no request leaves the site, and in which nothing is run that the site did not bring."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("dialog", lambda dialog: pytest.fail(f"a dialog says {dialog.message}"))
    yield page
    assert asked
    assert all(url.startswith((address, "blob:")) for url in asked), [
        url for url in asked if not url.startswith(address)
    ]
