"""Pages of clips with several labels."""

from pathlib import Path
from typing import Any

import pytest
import torch
from playwright.sync_api import Page, expect
from torch import nn

from amr.multiviz import explained
from amr.multiviz.analysis.whole import analyze
from amr.report.site import write_site
from tests.report.site.browser import visit


@pytest.fixture
def address(tmp_path: Path) -> str:
    """A site of three clips with two labels, none and one."""
    net = nn.Linear(2, 3)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 0], [0, 1], [0, 0]]))
        net.bias.zero_()
    model = explained(net, modalities=("x",), num_classes=3, task="labels")
    inputs = {"x": torch.tensor([[2.0, 1.0], [0, 3.0], [3.0, -1.0]])}
    label = torch.tensor([[1.0, 1, 0], [0, 0, 0], [0, 0, 1]])
    data: Any = {"test": [{"inputs": inputs, "label": label, "id": ["a", "b", "c"]}], "labels": ["cat", "dog", "emu"]}
    out = analyze(model, tmp_path / "out", data=data, clips=3, samples=8, stages=["clips"])
    write_site([out], tmp_path / "site")
    return f"{(tmp_path / 'site').as_uri()}/"


def test_all_labels_of_a_clip_are_shown(watched: Page, address: str) -> None:
    visit(watched, address, "#/")
    main = watched.locator("main")
    expect(main.get_by_role("heading", name="Confusion")).to_have_count(0)
    expect(main).to_contain_text("no confusion matrix: not defined for several labels per clip")
    expect(main).to_contain_text("over all labels, at one half")
    visit(watched, address, "#/clips?class=dog")
    expect(main.locator("a.row")).to_have_attribute("aria-label", "a: cat, dog, predicted right, confidence 88 %")
    visit(watched, address, "#/clip/a")
    expect(main.locator(".chip")).to_have_text(["true: cat, dog", "likeliest: cat"])
    expect(main.locator("button.aim")).to_have_text(["cat true88.1 %", "dog true73.1 %", "emu50.0 %"])
    visit(watched, address, "#/clip/b")
    expect(main.locator(".chip.bad")).to_have_text("likeliest: dog")
    expect(main.locator(".chip").first).to_have_text("true: none")
