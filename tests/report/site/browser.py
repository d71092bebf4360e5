"""The site in a real browser."""

import functools
import http.server
import threading
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect


class serve:  # noqa: N801 - used as a function
    """A web server of a folder, as long as the block lasts."""

    def __init__(self, folder: Path) -> None:
        handler = functools.partial(_Quiet, directory=str(folder))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)

    def __enter__(self) -> str:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}/"

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


def visit(page: Page, address: str, where: str) -> None:
    page.goto("about:blank")
    page.goto(f"{address}index.html{where}")
    expect(page.locator("main")).not_to_have_attribute("aria-busy", "true")
    expect(page.locator("main h1").first).to_be_visible()
