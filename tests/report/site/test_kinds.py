"""Pages of texts, images, tables and time series."""

import pytest
import torch
from playwright.sync_api import Page, expect
from torch import Tensor, nn

from amr.datamodules.atoms import Kind
from amr.multiviz import explained
from amr.multiviz.analysis.whole import analyze
from amr.report.site import write_site
from tests.report.site.browser import visit

EVIL = "<img/src=x>"
WORDS = ["<pad>", "un", "##like", EVIL, "not", "\u202ered", "cube"]


class Sums(nn.Module):
    """Logits of words × columns, and of an image and a series."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.rest = nn.Embedding(7, 4), nn.Linear(4 + 12 + 6, 2)

    def forward(self, text: Tensor, table: Tensor, image: Tensor, series: Tensor) -> Tensor:
        mixed = self.words(text).mean(1) * table[:, :4]
        logits: Tensor = self.rest(torch.cat([mixed, image.flatten(1), series.flatten(1)], 1))
        return logits


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A site of three clips with words, columns and channels of awkward names."""
    folder = tmp_path_factory.mktemp("kinds")
    text = torch.tensor([[1, 2, 3, 4, 0], [5, 6, 0, 0, 0], [4, 3, 1, 2, 6]])
    generator = torch.Generator().manual_seed(0)
    shapes = {"table": (5,), "image": (3, 2, 2), "series": (3, 2)}
    rest = {m: torch.rand(3, *shape, generator=generator) for m, shape in shapes.items()}
    batch = {"inputs": {"text": text, **rest}, "label": torch.tensor([0, 1, 0]), "id": ["a", "b", "c"]}
    kinds = {
        "text": Kind("tokens", vocabulary=WORDS),
        "table": Kind("table", names=[EVIL, "age", "pulse", "sex=f", "sex=m"], owner=(0, 1, 2, 3, 3)),
        "image": "image",
        "series": Kind("series", names=["heart", EVIL]),
    }
    model = explained(Sums(), modalities=tuple(kinds), num_classes=2, embeddings={"text": "words"})
    data = {"test": [batch], "kinds": kinds, "labels": ["x", EVIL]}
    out = analyze(model, folder / "out", data=data, clips=3, classes=1, samples=16, stages=["clips"])
    write_site([out], folder / "site")
    return f"{(folder / 'site').as_uri()}/"


def test_words_columns_and_curves(watched: Page, address: str) -> None:
    watched.set_viewport_size({"width": 390, "height": 800})
    visit(watched, address, "#/clip/a")
    main = watched.locator("main")
    words = main.locator(".cells.text").first.locator(".word")
    expect(words).to_have_text(["unlike", EVIL, "not"])  # joined; padding is no word
    rows = main.locator(".cells.table").first.locator(".column .name")
    expect(rows).to_have_text([EVIL, "age", "pulse", "sex"])
    assert main.locator(".cells.table").first.locator(".value").nth(3).inner_text() in "fm"
    expect(main.locator(".cells.series").first.locator(".curve")).to_have_count(2)
    expect(main.locator(".cells.series").first.locator(".stretch")).to_have_count(6)
    expect(main.locator(".canvas.image canvas").first).to_be_visible()
    assert "No media" not in main.inner_text()
    expect(main.get_by_text("In place of a piece: the token <pad>.").first).to_be_visible()
    part = words.evaluate_all("all => all.map((one) => parseFloat(one.style.getPropertyValue('--part')))")
    assert max(part) == pytest.approx(75 * 0.75, abs=0.2)  # the strongest word at the slider's strength
    picked = main.locator("button.word", has_text="not").first
    picked.click()
    expect(picked).to_have_attribute("aria-pressed", "true")
    picked.press("ArrowLeft")
    expect(main.locator("button.word", has_text=EVIL).first).to_be_focused()
    assert watched.evaluate("document.querySelectorAll('main img').length") == 0  # text stays text
    assert watched.evaluate("document.documentElement.scrollWidth <= innerWidth")
    visit(watched, address, "#/clip/a?strength=0")  # an image without its map keeps its colours
    canvas = main.locator(".canvas.image canvas").first
    pixels = canvas.evaluate("(c) => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]")
    assert max(max(rgb) - min(rgb) for rgb in (pixels[i : i + 3] for i in range(0, len(pixels), 4))) > 20
