"""Models of transformers are explained: the adapters' logits are the models' own, and every analysis runs on them."""

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from captum.attr import InputXGradient, ShapleyValues
from torch import Tensor

from amr.attribution import attribution_shares, equal_by_construction, shapley_shares
from amr.datamodules.atoms import Kind
from amr.evaluation.emap import emap, emap_gap
from amr.multiviz import Explained, adapters, crossmodal, unimodal
from amr.multiviz.adapters import CLIP, LXMERT, ViLT, early_fusion
from amr.utils.errors import UserError
from tests.conftest import REPOSITORY
from tests.multiviz.adapters import models

COUNT = 6
IMAGE = Kind("image", blocks=(2, 2))
PATCHES = IMAGE.atoms(models.images(1))
SPECIAL = (0, models.BEGIN, models.END)  # what is in no word


def other() -> Any:
    masks = {"text": "attention_mask", "regions": "visual_attention_mask"}
    return early_fusion(models.visual_bert(), {"text": "input_ids", "regions": "visual_embeds"}, masks=masks, padding=0)


def with_images(count: int) -> dict[str, Tensor]:
    return {"text": models.texts(count), "image": models.images(count)}


def with_regions(width: int) -> Callable[[int], dict[str, Tensor]]:
    return lambda count: {"text": models.texts(count), "regions": models.regions(count, width)}


CASES: dict[str, tuple[Callable[[], Any], Callable[[int], dict[str, Tensor]]]] = {
    "ViLT": (lambda: ViLT(models.vilt()), with_images),
    "LXMERT": (lambda: LXMERT(models.lxmert()), with_regions(11)),
    "CLIP": (lambda: CLIP(models.clip()), with_images),
    "other": (other, with_regions(7)),
}
MADE: dict[str, Any] = {}


def made(name: str) -> tuple[Any, dict[str, Tensor]]:
    make, clips = CASES[name]
    return MADE.setdefault(name, make()), clips(COUNT)


@pytest.mark.parametrize("name", CASES)
def test_logits_are_the_models_own_and_padding_is_as_if_it_were_not_there(name: str) -> None:
    """Every clip by itself, cut to its own words and regions, and without any mask, by the model alone."""
    model, x = made(name)
    assert isinstance(made(name)[0], Explained)
    logits = model(x)
    assert logits.std(0).min() > 1e-3
    for i in range(COUNT):
        ids = x["text"][i : i + 1]
        given = {"input_ids": ids[:, : int((ids != 0).sum())]}
        if "image" in x:
            said = model.module(**given, pixel_values=x["image"][i : i + 1])
        else:
            some = x["regions"][i : i + 1, : 3 if i % 2 == 0 else 4]
            named = {"visual_feats": some[..., :7], "visual_pos": some[..., 7:]} if name == "LXMERT" else {}
            named = named or {"visual_embeds": some, "attention_mask": torch.ones_like(given["input_ids"])}
            said = model.module(**given, **named)
        if name == "CLIP":
            expected = torch.cat([said.logits_per_image, -said.logits_per_image], dim=1) / 2
        else:
            expected = said.question_answering_score if name == "LXMERT" else said.logits
        torch.testing.assert_close(logits[i : i + 1], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_analyses_run(name: str) -> None:
    model, x = made(name)
    second = model.modalities[1]
    words = Kind("tokens", vocabulary="ids", special=SPECIAL).atoms(x["text"])
    rows = Kind("regions") if second == "regions" else IMAGE
    sides = ("text", words), (second, rows.atoms(x[second]))
    encodings = {key: e.detach() for key, e in model.encode(x).items()}
    mean = {key: e.mean(0, keepdim=True) for key, e in encodings.items()}
    for shares in (attribution_shares(model.head, encodings), shapley_shares(model.head, encodings, mean)):
        torch.testing.assert_close(shares.sum(1), torch.ones(COUNT))
        assert (shares > 0).all()
    logits = model.head(encodings)
    assert emap(model, encodings).shape == logits.shape
    assert abs(emap_gap(model, encodings, logits.argmax(1))) <= 1
    few: Any = {"samples": 16, "repeats": 1}
    for key, some in sides:
        maps = (
            unimodal.occlusion(model, x, key, "predicted", some),
            *(method(model, x, key, "predicted", some, **few) for method in (unimodal.lime, unimodal.kernel_shap)),
        )
        for found in (*maps, unimodal.gradient_input(model, x, key, "predicted", some)):
            assert found.values.shape == (COUNT, len(some))
            assert found.values.isfinite().all()
            assert found.values.abs().amax() > 0
    taken = unimodal.occlusion(model, x, "text", "predicted", words).values
    assert torch.equal(taken[::3, 2:], torch.zeros(2, 2))  # of the shorter texts, which have two words
    pairs = crossmodal.ablation(model, x, "predicted", *sides)
    assert pairs.shape == (COUNT, 4, 4)
    assert pairs.isfinite().all()


def test_shares_of_vilt_are_captums_on_the_same_embeddings() -> None:
    model, x = made("ViLT")
    encodings = {name: e.detach() for name, e in model.encode(x).items()}
    there = (x["text"] != 0).long()
    places = model.module.vilt.embeddings.patch_embeddings

    def forward(words: Tensor, patches: Tensor) -> Tensor:
        """By the model's own forward pass, whose patches are given by a hook."""
        handle = places.register_forward_hook(lambda *_: patches)
        rows = torch.arange(len(words)) % COUNT
        logits: Tensor = model.module(
            inputs_embeds=words, attention_mask=there[rows], pixel_values=x["image"][rows]
        ).logits
        handle.remove()
        return logits

    pieces = tuple(e.requires_grad_() for e in (encodings["text"][..., :-1].clone(), encodings["image"].clone()))
    top = forward(*pieces).argmax(1)
    products = InputXGradient(forward).attribute(pieces, target=top)
    norms = torch.stack([p.flatten(1).norm(dim=1) for p in products], dim=1).detach()
    shares = attribution_shares(model.head, encodings, score="logit")
    torch.testing.assert_close(shares, norms / norms.sum(1, keepdim=True), atol=1e-4, rtol=1e-3)

    mean = {name: e.mean(0, keepdim=True) for name, e in encodings.items()}
    mean["text"][..., -1] = encodings["text"][1, :, -1]  # a mask of the clips' own, since captum's forward has theirs
    full = torch.arange(COUNT) % 3 != 0
    few = {name: e[full] for name, e in encodings.items()}
    # captum ablates equal ids of two tensors together: every modality has its own.
    ids = (torch.zeros(1, 1, 1, dtype=torch.long), torch.ones(1, 1, 1, 1, dtype=torch.long))
    there = torch.ones(COUNT, 6, dtype=torch.long)
    with torch.no_grad():
        values = ShapleyValues(forward).attribute(
            (few["text"][..., :-1], few["image"]),
            baselines=(mean["text"][..., :-1], mean["image"]),
            feature_mask=ids,
            target=top[full],
        )
    sizes = torch.stack([value.flatten(1)[:, 0].abs() for value in values], dim=1)
    found = shapley_shares(model.head, few, mean, score="logit")
    torch.testing.assert_close(found, sizes / sizes.sum(1, keepdim=True), atol=1e-3, rtol=1e-3)


def test_a_pair_of_clip_has_half_a_gradient_share_each_and_shapley_shares_of_its_own() -> None:
    model, x = made("CLIP")
    encodings = {name: e.detach() for name, e in model.encode(x).items()}
    shares = attribution_shares(model.head, encodings)
    torch.testing.assert_close(shares, torch.full((COUNT, 2), 0.5))
    assert "exactly 1/2" in equal_by_construction(shares)
    mean = {name: e.mean(0, keepdim=True) for name, e in encodings.items()}
    found = shapley_shares(model.head, encodings, mean, score="logit")
    t, v, scale = encodings["text"], encodings["image"], model.module.logit_scale.exp()
    own = [  # Shapley values of a product of two: half of what a factor adds alone and beside the other
        ((a - mean_a) * (b + mean_b)).sum(1) * scale / 2
        for a, b, mean_a, mean_b in ((t, v, mean["text"], mean["image"]), (v, t, mean["image"], mean["text"]))
    ]
    sizes = torch.stack(own, dim=1).abs()
    expected = sizes / sizes.sum(1, keepdim=True)
    torch.testing.assert_close(found, expected.detach(), atol=1e-4, rtol=1e-4)
    assert (found - 0.5).abs().max() > 0.05


def test_prompts_are_classes_of_clip() -> None:
    prompts, x = models.texts(4), {"image": models.images(5)}
    model = CLIP(models.clip(), prompts=prompts)
    expected = model.module(input_ids=prompts, pixel_values=x["image"]).logits_per_image
    torch.testing.assert_close(model(x), expected)
    assert model.modalities == ("image",)
    assert unimodal.lime(model, x, "image", "predicted", PATCHES, samples=16, repeats=1).values.shape == (5, 4)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "colour", "is", "it", "##s"]
    vocabulary = tmp_path_factory.mktemp("words") / "vocab.txt"
    Path(vocabulary).write_text("\n".join(words))
    return transformers.BertTokenizer(str(vocabulary))


def test_a_processor_makes_the_inputs(tokenizer: Any) -> None:
    resize = {"height": 16, "width": 16}
    pixels = transformers.ViltImageProcessor(do_resize=False, size=resize)
    model = ViLT(models.vilt(), transformers.ViltProcessor(pixels, tokenizer))
    pictures = [(torch.rand(3, 16, 16) * 255).byte().numpy() for _ in range(2)]
    x = model.inputs(["what colour is it", "what is its"], pictures)
    assert x["text"].tolist() == [[2, 5, 6, 7, 8, 3], [2, 5, 7, 8, 9, 3]]
    assert x["image"].shape == (2, 3, 16, 16)
    assert model(x).shape == (2, 5)
    with pytest.raises(UserError, match="images of several sizes"):
        model.inputs(["what", "is it"], [pictures[0], pictures[1][:, :8]])
    features, boxes = torch.rand(1, 4, 7), torch.rand(1, 4, 4)
    lxmert = LXMERT(models.lxmert(), tokenizer)
    assert lxmert(lxmert.inputs(["what is it"], features, boxes)).shape == (1, 5)


def broken() -> ViLT:
    model = ViLT(models.vilt())
    patches = model._patches
    model._patches = lambda x: 2 * patches(x)  # type: ignore[method-assign]
    return model


LINES: list[tuple[Callable[[], Any], str]] = [
    (lambda: ViLT(models.clip()), "model=CLIPModel: must be a transformers.ViltForQuestionAnswering"),
    (lambda: early_fusion(torch.nn.Linear(1, 1), {"a": "b"}), "model=Linear: must be a model of transformers"),
    (lambda: early_fusion(models.vilt(), {"text": "input_ids"}, masks={"txt": "m"}), "'txt' is no modality"),
    (lambda: made("ViLT")[0].inputs(["what"], []), "ViLT: processor: must be given to make inputs of texts"),
    (lambda: made("LXMERT")[0].inputs(["what"], models.images(1), models.images(1)), "LXMERT: processor: must be"),
    (lambda: made("ViLT")[0].encode({"image": models.images(2)[:, :1]}), r"\(2, 1, 16, 16\); must be floating-point"),
    (lambda: made("CLIP")[0].encode({"image": models.images(2)[..., :8]}), r"must be floating-point \(B, 3, 16, 16\)"),
    (lambda: made("CLIP")[0].encode({"text": models.texts(2)[:, :2]}), "a text without an end; must have the id 29"),
    (lambda: made("CLIP")[0].encode({"text": models.texts(2).repeat(1, 2)}), "T <= 6"),
    (lambda: made("ViLT")[0].encode({"text": models.texts(2) + 9}), "id 38; must be 0 to 29"),
    (lambda: made("ViLT")[0].encode({"text": models.texts(2)[0]}), r"\(6,\); must be ids \(B, T\)"),
    (lambda: made("LXMERT")[0].encode({"regions": models.regions(2, 7)}), "must be floating-point .B, R, 11.: 7"),
    (lambda: ViLT(models.vilt(max_image_length=3)).encode({"image": models.images(2)}), "4 patches, of which the"),
    (lambda: attribution_shares(other().head, {"text": models.texts(2), "regions": models.texts(2)}), "encodings.text"),
    (lambda: broken().encode(with_images(2)), "logits are not those of ViltForQuestionAnswering .*transformers 5"),
    (lambda: made("ViLT")[0].encode({"text": "what", "image": models.images(2)}), "inputs.text=str: must be a tensor"),
]


@pytest.mark.parametrize(("call", "line"), LINES, ids=[line for _, line in LINES])
def test_what_is_wrong_is_one_line(call: Callable[[], object], line: str) -> None:
    with pytest.raises(UserError, match=line) as error:
        call()
    assert "\n" not in str(error.value)


def test_without_transformers_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install 'amr-fusion\[transformers\]'") as error:
        adapters.ViLT  # noqa: B018 - the access imports
    assert "\n" not in str(error.value)


def test_the_example_wraps_a_model_in_under_25_lines(capsys: pytest.CaptureFixture[str]) -> None:
    example = REPOSITORY / "examples/transformers_model.py"
    assert len(example.read_text(encoding="utf-8").splitlines()) < 25
    torch.manual_seed(0)
    runpy.run_path(str(example))
    shares, importance = capsys.readouterr().out.splitlines()
    assert sum(json.loads(shares.removeprefix("shares: "))) == pytest.approx(1)
    assert torch.tensor(json.loads(importance.partition(": ")[2])).shape == (8, 6)
