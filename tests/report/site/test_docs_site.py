"""The documents' site opens and searches from disk, asks nothing of the network, and can be read in the dark."""

from pathlib import Path
from typing import Any

import yaml
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.utils.yaml import yaml_load
from PIL import Image
from playwright.sync_api import Page

from tests.conftest import REPOSITORY

CAVEATS = """**Caveats.**
- One,
  in two lines.
- Another.

At least
2. No list begins so.

```
Text
- no item
```

![A plot](plot.png) ![A picture of the site](site-clip.png)
"""


def test_from_disk(page: Page, tmp_path: Path) -> None:
    config = yaml_load((REPOSITORY / "mkdocs.yml").read_text())
    config["plugins"] = [plugin for plugin in config["plugins"] if isinstance(plugin, str)]  # no API: it takes seconds
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "assets").symlink_to(REPOSITORY / "docs/assets")
    (docs / "index.md").write_text("# Home\n\n| a | b |\n|---|---|\n" + f"| {'wide ' * 9}| {'table ' * 99}|\n")
    (docs / "other.md").write_text("# Agreement\n\nKrippendorff's alpha, of raters.\n\n" + CAVEATS)
    for name in ("plot", "site-clip"):
        Image.new("RGB", (8, 8), "white").save(docs / f"{name}.png")
    changes: dict[str, Any] = {"docs_dir": str(docs), "site_dir": str(tmp_path / "site"), "nav": None}
    changes["hooks"] = [str(REPOSITORY / "docs/hooks.py")]
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump({**config, **changes}))
    build(load_config(str(tmp_path / "mkdocs.yml")))

    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto((tmp_path / "site/index.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.set_viewport_size({"width": 1280, "height": 900})
    page.click(".md-search__input")
    page.keyboard.type("krippendorff")
    page.locator(".md-search-result__item", has_text="Agreement").first.wait_for()
    page.goto((tmp_path / "site/other.html").as_uri())
    # A list that follows a line of text is a list, and what looks like one in code is not.
    assert page.locator("article li").all_inner_texts() == ["One, in two lines.", "Another."]
    assert page.locator("article pre").inner_text().strip() == "Text\n- no item"
    # A plot on white paper becomes dark, a picture of the site does not.
    page.locator("label[title='Dark']").click()
    plot, picture = (page.locator(f"article img[src$='{name}.png']") for name in ("plot", "site-clip"))
    assert "invert" in plot.evaluate("(one) => getComputedStyle(one).filter")
    assert picture.evaluate("(one) => getComputedStyle(one).filter") == "none"
    assert asked
    assert all(url.startswith(("file:", "data:", "blob:")) for url in asked), asked
