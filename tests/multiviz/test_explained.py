"""Any module can be explained: how it is wrapped, what is refused, and that every analysis runs on it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from captum.attr import InputXGradient
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from amr.attribution import attribution_shares, equal_by_construction, shapley_shares
from amr.datamodules.atoms import Atoms, video_atoms
from amr.evaluation import use
from amr.evaluation.decisions.conflict import conflicts
from amr.evaluation.emap import emap, emap_gap
from amr.evaluation.metrics import attribution
from amr.evaluation.robustness import measure
from amr.model import bare_model, fusion_model
from amr.model.encoded import Encoded
from amr.multiviz import Explained, crossmodal, explained, trust, unimodal
from amr.multiviz.analysis.whole import analyze
from amr.multiviz.base import Several, Unit
from amr.multiviz.errors import classify_errors
from amr.multiviz.representation import extreme_clips
from amr.utils.errors import UserError
from amr.utils.readers import read_object
from tests import toy
from tests.multiviz import nets
from tests.multiviz.early import CLASSES, Answers, Bag, Early, Plain, Towers, clips, early, words

IMAGE = video_atoms((3, 8, 8), (2, 2), 1)
LINES = [  # what is wrapped, and the one line that refuses it
    (lambda: early(embeddings={"text": "wrods"}), "Early has no layer 'wrods'; did you mean 'words'"),
    (lambda: early(embeddings={"sound": "words"}), "embeddings names 'sound'; must be of 'text', 'image'"),
    (lambda: early(embeddings={"text": "words", "image": "words"}), "names the layer 'words' twice"),
    (lambda: early(carry_ids=["image"]), "carry_ids names 'image'; must be of 'text'"),
    (lambda: early(encode=lambda x: x), "encode and head must be given together"),
    (lambda: early(batch_rows=0), "batch_rows=0: must be at least 1"),
    (lambda: explained(Early(), modalities=("a", "b", "c"), num_classes=3), "Early.forward has 'image', 'text'; give"),
    (lambda: explained(Early(), modalities={"a": "txt"}, num_classes=3), "has no argument 'txt'; it has"),
    (lambda: explained(Early(), modalities="text", num_classes=3), "modalities='text': must be names"),
    (lambda: explained(1, modalities=("a",), num_classes=3), "module=int: must be an nn.Module"),  # type: ignore[arg-type]
    (lambda: bare_model(nn.Linear(2, 2)), "model=Linear: it has no modalities, num_classes, encode, penultimate"),
    (lambda: fusion_model(early()), "model=ExplainedModule: must be a FusionModel"),
    (lambda: early(penultimate="layers.layers.0.linear1").encode(clips()), "must be a layer that runs once and takes"),
    (lambda: early(penultimate="out", classify=lambda f: f[:, :3]).encode(clips()), "'out' is not the logits"),
    (lambda: early(True).encode(clips()), r"carry_ids=\['text'\]"),
    (
        lambda: explained(Early(), modalities=("text", "image"), num_classes=4)(clips()),
        "returned .4, 3.; must be logits",
    ),
    (
        lambda: early().encode(cast("Any", {"text": [[1, 2], [3]], "image": clips()["image"]})),
        "ragged, 1 to 2 long; must be one",
    ),
    (
        lambda: early().encode(cast("Any", {"text": clips()["text"], "image": "x"})),
        "inputs.image=str: must be a tensor",
    ),
    (lambda: early().encode({**clips(), "text": clips()["text"] + 9}), "id 20; must be 0 to 11"),
    (lambda: early().encode({**clips(), "text": clips()["image"]}), "inputs.text=torch.float32: must be integer ids"),
    (lambda: early().encode({**clips(), "text": clips(2)["text"]}), "text has 2, image has 4 clips"),
    (lambda: early().head({"text": torch.zeros(1, 5, 8)}), "encodings: none of 'image'"),
    (lambda: unimodal.gradient(early(embeddings=None), clips(), "text"), "inputs.text=torch.int64: must be floating"),
    (lambda: attribution_shares(early(embeddings=None).head, early(embeddings=None).encode(clips())), "encodings.text"),
    (lambda: unimodal.occlusion(early(), clips(), "text", 0, words(), baseline=0.5), "baseline=0.5: must be ids"),
    (
        lambda: crossmodal.ablation(early(), clips(), 0, ("text", words()), ("image", IMAGE), "mean"),
        "which have no mean",
    ),
    (lambda: unimodal.grad_cam(early(), clips(), "text", layer=nn.Linear(1, 1)), "ids are no map"),
    (
        lambda: trust.cascading_randomisation(early(), clips(), "text", explain_text),
        "it has no encoder of 'text' alone",
    ),
    (lambda: unimodal.occlusion(Together(), clips(), "text", 0, words()), "encode must take 'text' alone"),
]


class Together(Plain):
    """An encoding that needs both modalities."""

    def __init__(self) -> None:
        super().__init__(Early())

    def encode(self, inputs: Any) -> dict[str, Tensor]:
        return super().encode({name: inputs[name] for name in self.modalities})


def explain_text(model: Explained, inputs: Any, seed: int) -> unimodal.Importance:
    return unimodal.lime(model, inputs, "text", 1, words(), samples=16, repeats=1, seed=seed)


@pytest.mark.parametrize(("call", "line"), LINES, ids=[line for _, line in LINES])
def test_what_cannot_be_explained_is_refused_in_one_line(call: Callable[[], object], line: str) -> None:
    with pytest.raises(UserError, match=line) as error:
        call()
    assert "\n" not in str(error.value)


# Wrapping


@pytest.mark.parametrize("way", ["tensor", "object", "tuple", "mapping"])
def test_a_module_is_called_as_it_asks(way: str) -> None:
    net, x = Early().eval(), clips()
    expected = net(**x)
    for module, names in ((net, ("text", "image")), (Answers(net, way), ("text", "image"))):
        torch.testing.assert_close(explained(module, modalities=names, num_classes=CLASSES)(x), expected)
    renamed = explained(net, modalities={"words": "text", "picture": "image"}, num_classes=CLASSES)
    torch.testing.assert_close(renamed({"words": x["text"], "picture": x["image"]}), expected)
    swapped = explained(net, modalities=("a", "b"), num_classes=CLASSES)  # in the order of its arguments
    torch.testing.assert_close(swapped({"a": x["text"], "b": x["image"]}), expected)
    own = explained(net, modalities=("a", "b"), num_classes=CLASSES, forward=lambda i: net(i["a"], i["b"]))
    torch.testing.assert_close(own({"a": x["text"], "b": x["image"]}), expected)


def test_encodings_are_embeddings_and_features_the_last_layers_input() -> None:
    model, x = early(embeddings={"text": "words", "image": "patches"}), clips()
    net = model.module
    assert isinstance(net, Early)
    assert isinstance(model, Explained)
    encodings = model.encode(x)
    assert torch.equal(encodings["text"], net.words(x["text"]))
    assert torch.equal(encodings["image"], net.patches(x["image"]))
    assert model.training  # the check ran in eval mode, and put it back
    model.eval()
    logits = net(**x)
    torch.testing.assert_close(model.head(encodings), logits)
    features = model.penultimate(encodings)
    torch.testing.assert_close(features, net.layers(_sequence(net, x))[:, -1])
    torch.testing.assert_close(model.classify(features), logits)
    assert torch.equal(
        early(penultimate="out").eval().penultimate({"text": encodings["text"], "image": x["image"]}), features
    )
    bag = explained(Bag(), modalities=("text", "image"), num_classes=CLASSES)  # its logits are no layer's output
    assert torch.equal(bag.penultimate(bag.encode(_flat())), bag.module(**_flat()))


def _sequence(net: Early, x: dict[str, Tensor]) -> Tensor:
    return torch.cat([net.words(x["text"]), net.patches(x["image"]).flatten(2).mT], dim=1)


def _flat(count: int = 3, length: int = 5) -> dict[str, Tensor]:
    return {"text": clips(count, length)["text"], "image": torch.linspace(-1, 1, 4 * count).double().view(count, 4)}


def test_carried_ids_make_the_padding_mask_and_have_no_share() -> None:
    model, x = early(True, carry_ids=["text"]).eval(), clips()
    x["text"][0, 2:] = x["text"][1, 4:] = 0
    encodings = model.encode(x)
    expected = model.module(**x)
    torch.testing.assert_close(model.head(encodings), expected)
    net = model.module
    assert isinstance(net, Early)
    bare = {"text": net.words(x["text"]), "image": net.patches(x["image"])}

    def head(e: dict[str, Tensor]) -> Tensor:
        return net.classified(e["text"], e["image"].flatten(2).mT, x["text"] == 0)

    whole = early(True, carry_ids=["text"], embeddings={"text": "words", "image": "patches"}).eval()
    torch.testing.assert_close(attribution_shares(whole.head, whole.encode(x)), attribution_shares(head, bare))
    values = unimodal.integrated_gradients(model, x, "text", 1, words(), baseline=0, steps=64).values
    assert torch.equal(values[0, 2:], torch.zeros(3))  # padding is its own baseline


def test_rows_run_a_few_at_a_time() -> None:
    model, x, seen = early(batch_rows=3), clips(7), []
    model.module.register_forward_pre_hook(lambda _, args, kwargs: seen.append(len(kwargs["text"])), with_kwargs=True)
    encodings = model.encode(x)
    seen.clear()
    emap(model, encodings)
    unimodal.occlusion(model, x, "text", 0, words())
    assert max(seen) == 3
    few = early(batch_rows=64)
    torch.testing.assert_close(emap(model, encodings), emap(few, encodings))


# Every function


def named(name: str) -> Callable[[str], str]:
    """Puts a name before a message."""
    return lambda message: f"{name}: {message}"


def calls(model: Any, x: dict[str, Tensor], names: tuple[str, str], atoms: tuple[Any, Any]) -> dict[str, Any]:
    """What every function says of a model, by name."""
    first, second = names
    sides = (first, atoms[0]), (second, atoms[1])
    with torch.no_grad():
        e = model.encode(x)
    count = len(x[first])
    labels = torch.arange(count) % 3
    several = Several(torch.tensor([[0, 1]] * count), torch.tensor([[0]] * count))
    few: Any = {"samples": 2 + 2 * len(atoms[0]), "repeats": 1}
    both: Any = {"samples": 2 * (len(atoms[0]) + 1) * (len(atoms[1]) + 1), "repeats": 1}
    maps = {name: unimodal.occlusion(model, x, name, 1, some) for name, some in sides}
    encoded = Encoded([f"{i}" for i in range(count)], labels, e)
    found: dict[str, Any] = {
        "occlusion": unimodal.occlusion(model, x, first, several, atoms[0]).values,
        "lime": unimodal.lime(model, x, first, 1, atoms[0], **few).values,
        "kernel_shap": unimodal.kernel_shap(model, x, first, Unit(1), atoms[0], **few).values,
        "ablation": crossmodal.ablation(model, x, several, *sides),
        "second_order": crossmodal.second_order(model, x, 1, *sides).as_subclass(Tensor),
        "joint_lime": crossmodal.joint_lime(model, x, 1, *sides, **both).pairs.values,
        "joint_shap": crossmodal.joint_shap(model, x, 1, *sides, **both).pairs.values,
        "dime": crossmodal.dime(model, x, e, 1, sides[0], samples=2 + len(atoms[0]), repeats=1).multimodal.values,
        "modality_shapley": crossmodal.modality_shapley(model, e, "predicted", "mean"),
        "interaction_index": crossmodal.interaction_index(model, e, 1, "mean"),
        "interaction_error": crossmodal.interaction_error(model, e, e, 1).error,
        "contributions": torch.stack(crossmodal.contributions(model, e, "predicted")),
        "emap_gap": torch.tensor(emap_gap(model, e, labels)),
        "shuffled": use.shuffled(model, e, labels, repeats=2),
        "attribution": attribution(model, encoded),
        "conflicts": conflicts(model, e, labels, repeats=2).wins.double(),
        "errors": classify_errors(model, e, labels, draws=2, refits=1).interaction,
        "insertion": trust.insertion(model, x, first, 1, maps[first], steps=2, orders=1).curve,
        "deletion": trust.deletion(model, x, first, 1, maps[first], steps=2, orders=1).curve,
        "infidelity": trust.infidelity(model, x, first, 1, maps[first], samples=4),
        "sensitivity_n": torch.stack([*trust.sensitivity_n(model, x, first, 1, maps[first], subsets=4).values()]),
        "synergy": trust.synergy(model, x, 1, maps, orders=1, steps=2)[first, second].curve,
        "interaction_sensitivity_n": trust.interaction_sensitivity_n(
            model, x, 1, crossmodal.ablation(model, x, 1, *sides), *sides, sizes=[(1, 1)], subsets=4
        )[1, 1],
        "extreme_clips": extreme_clips(model, [{"inputs": x, "label": labels}], k=1).most.values,
    }
    for name in ("gradient", "gradient_input", "integrated_gradients", "gradient_shap"):
        found[name] = getattr(unimodal, name)(model, x, first, 1, atoms[0]).values
    return found


MODELS: dict[str, Callable[[], Any]] = {
    "embedded": lambda: early(),
    "both embedded": lambda: early(embeddings={"text": "words", "image": "patches"}),
    "split": lambda: _split(),
    "no module": lambda: Plain(Early()),
}


def _split() -> Any:
    net = Early()
    parts: dict[str, Any] = {"text": net.words, "image": lambda x: net.patches(x).flatten(2).mT}
    return explained(
        net,
        modalities=("text", "image"),
        num_classes=CLASSES,
        encode=lambda x: {name: parts[name](value) for name, value in x.items()},
        head=lambda e: net.classified(e["text"], e["image"]),
        embeddings={"text": "words"},
        penultimate="out",
    )


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    return calls(MODELS["embedded"](), clips(3), ("text", "image"), (words(), IMAGE))


@pytest.mark.parametrize("kind", ["both embedded", "split", "no module"])
def test_every_function_says_the_same_however_the_network_is_wrapped(kind: str, reference: dict[str, Any]) -> None:
    found = calls(MODELS[kind](), clips(3), ("text", "image"), (words(), IMAGE))
    assert found.keys() == reference.keys()
    by_encoding = {"attribution", "modality_shapley", "interaction_index", "interaction_error"}  # other encodings
    for name, values in found.items():
        assert values.isfinite().all(), name
        if name not in by_encoding:
            torch.testing.assert_close(values, reference[name], atol=2e-4, rtol=2e-3, msg=named(name))


def test_a_wrapped_fusion_model_is_explained_as_itself() -> None:
    model = nets.model_of({"one": toy.Linear(), "two": toy.Linear()})
    x = {name: value for name, value in nets.clips(3).items() if name != "three"}
    wrapped = explained(
        model,
        modalities=("one", "two"),
        num_classes=3,
        encode=lambda i: {name: model.encoders[name](value) for name, value in i.items()},
        head=model.head,
    )
    halves = Atoms(torch.arange(6) // 3, ({"half": 0.0}, {"half": 1.0}), (2,))
    expected, found = (calls(m, x, ("one", "two"), (halves, halves)) for m in (model, wrapped))
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, msg=named(name))


def test_the_order_of_arguments_of_0_1_is_understood() -> None:
    model, x = early(), clips(3)
    e = model.encode(x)
    mean = {name: value.mean(0, keepdim=True) for name, value in e.items()}
    for function in (crossmodal.modality_shapley, crossmodal.interaction_index):
        expected = function(model, e, "predicted", mean)
        assert not torch.equal(expected, function(model, e, "predicted"))
        for old in (function(model, e, mean, "predicted"), function(model, e, "mean", torch.tensor([0, 1, 2]))):
            assert old.shape == expected.shape
        assert torch.equal(function(model, e, mean, "predicted"), expected)
    batches = [{"inputs": x, "label": torch.zeros(3, dtype=torch.long)}]
    assert extreme_clips(batches, model, k=2).most.ids == extreme_clips(model, batches, k=2).most.ids


def test_maps_of_methods_that_look_into_the_network() -> None:
    model, x = early(embeddings={"text": "words"}), clips()
    cam = unimodal.grad_cam(model, x, "image", 1, IMAGE, layer=model.module.patches)  # type: ignore[arg-type]
    assert cam.values.shape == (4, 4)
    assert cam.values.isfinite().all()
    scores = trust.trust(model, x, "text", torch.ones(4, dtype=torch.long), explain_text, draws=1, seeds=2, samples=8)
    assert scores.max_sensitivity.isnan().all()  # ids have no small noise
    assert list(scores.randomisation) == ["model"]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    likeness = trust.randomisation_test(model, x, explain_text)["model"].likeness
    assert likeness < 0.999
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# Oracles


@pytest.mark.parametrize("length", [3, 17])
def test_a_linear_bag_of_words_recovers_its_weights(length: int) -> None:
    model = explained(Bag(), modalities=("text", "image"), num_classes=CLASSES, embeddings={"text": "words"})
    x, atoms = _flat(length=length), words(length)
    weights = model.module.words.weight.detach()[x["text"]]  # type: ignore[union-attr, operator]
    for target in range(CLASSES):
        options: Any = {"samples": 2 * length + 40}
        found = {
            "lime": unimodal.lime(model, x, "text", target, atoms, ridge=0, **options),
            "kernel_shap": unimodal.kernel_shap(model, x, "text", target, atoms, **options),
            "occlusion": unimodal.occlusion(model, x, "text", target, atoms),
            "integrated_gradients": unimodal.integrated_gradients(model, x, "text", target, atoms, baseline=0, steps=2),
            "gradient_input": unimodal.gradient_input(model, x, "text", target),
        }
        for name, got in found.items():
            torch.testing.assert_close(got.values, weights[..., target], msg=named(name))


def test_shares_of_the_early_network_are_captums() -> None:
    model, x = early(embeddings={"text": "words", "image": "patches"}).eval(), clips(6)
    net = model.module
    assert isinstance(net, Early)
    e = {name: value.detach().requires_grad_() for name, value in model.encode(x).items()}
    logits = net.classified(e["text"], e["image"].flatten(2).mT)
    forward = lambda a, b: net.classified(a, b.flatten(2).mT)  # noqa: E731
    products = InputXGradient(forward).attribute((e["text"], e["image"]), target=logits.argmax(1))
    norms = torch.stack([p.flatten(1).norm(dim=1) for p in products], dim=1)
    expected = (norms / norms.sum(1, keepdim=True)).detach()
    torch.testing.assert_close(attribution_shares(model.head, e, score="logit"), expected)


def test_shares_of_a_dot_product_are_a_half_which_is_said() -> None:
    net = Towers()
    model = explained(net, modalities=("one", "two"), num_classes=2, encode=net.encode, head=net.score)
    encodings = model.encode({"one": torch.randn(9, 6), "two": torch.randn(9, 5)})
    shares = attribution_shares(model.head, encodings)
    torch.testing.assert_close(shares, torch.full((9, 2), 0.5))
    assert "exactly 1/2" in equal_by_construction(shares)
    assert "Shapley" in equal_by_construction(shares)
    mean = {name: e.mean(0, keepdim=True) for name, e in encodings.items()}
    assert (shapley_shares(model.head, encodings, mean) - 0.5).abs().max() > 0.05
    other = attribution_shares(early().eval().head, early().encode(clips()) | {"image": clips()["image"]})
    assert equal_by_construction(other) == ""
    assert equal_by_construction(shares[:1]) == ""
    assert equal_by_construction(torch.zeros(4, 2)) == ""


# Whole analyses


def loaders(count: int = 12) -> dict[str, Any]:
    x = clips(count)
    labels = torch.arange(count) % CLASSES
    split = DataLoader(TensorDataset(x["text"], x["image"], labels), batch_size=6)
    return {"train": split, "test": split}


def test_it_is_measured() -> None:
    rows = measure(early(), loaders(), resamples=10)
    found = {row.measure for row in rows}
    assert {"acc", "probe", "acc_alone"} <= found


def test_it_is_analysed(tmp_path: Path) -> None:
    stages: Any = ("representation", "errors", "clips", "trust")
    out = analyze(early(), tmp_path / "out", data=loaders(), clips=2, classes=1, units=1, samples=100, stages=stages)
    summary = read_object(out / "summary.json")
    assert summary["explained"] == 2
    assert any("it has no encoder of 'image' alone" in line for line in summary["notes"])
