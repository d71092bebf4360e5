"""A model back from its checkpoint alone."""

import functools
import re
from pathlib import Path
from typing import Any, cast

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from amr import fusion as fusions
from amr.classifier import FusionClassifier
from amr.cli import main
from amr.encoders import Encoder, ResNetEncoder, SmallCNN, SmallFrameCNN, as_encoder
from amr.fusion import Fusion, Gated
from amr.load import load_model, save_model
from amr.model import FusionModel
from amr.regularizers import AMR, AUG, Greedy, MMCosine, Regularizer
from amr.utils.errors import UserError
from tests.toy import Linear, Tokens, Toy
from tests.training import assert_equal, build, fit, weights

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(LeafSpec|num_workers|logging interval|tensorboardX|exists and is not empty)"
)
FUSIONS = ["Attention", "Concat", "FiLM", "Gated", "Late", "LowRank", "MulT", "Shared", "Sum"]


def save(model: FusionClassifier, section: dict[str, Any] | None, path: Path) -> None:
    """An epoch of training, and the checkpoint as the command line writes it."""
    model.config = section
    fit(model, Toy(), max_epochs=1).save_checkpoint(path)


def architecture(encoder: type[Linear] = Linear, **more: Any) -> dict[str, Any]:
    return {"encoders": {name: {"class_path": f"tests.toy.{encoder.__name__}"} for name in ("audio", "video")}, **more}


def assert_same_model(loaded: nn.Module, model: FusionClassifier) -> None:
    inputs = Toy().inputs
    model.eval()
    assert torch.equal(loaded(inputs), model(inputs))
    assert not any(module.training for module in loaded.modules())
    assert_equal(dict(loaded.state_dict()), weights(model))


@pytest.mark.parametrize("name", FUSIONS)
@pytest.mark.parametrize("encoder", [Linear, Tokens])
def test_every_fusion_comes_back(name: str, encoder: type[Linear], tmp_path: Path) -> None:
    model = build(fusion=lambda dims, classes: getattr(fusions, name)(dims, classes, hidden=5), encoder=encoder)
    options = {"class_path": f"amr.fusion.{name}", "init_args": {"hidden": 5}}
    save(model, architecture(encoder, fusion=options), tmp_path / "a.ckpt")
    assert_same_model(load_model(tmp_path / "a.ckpt", trust=("tests",)), model)


def test_what_the_command_line_writes_is_enough(tiny: list[str], tmp_path: Path) -> None:
    run = ["--runs_dir", str(tmp_path), "--name", "run", "--wandb", "disabled", "--trainer.max_epochs", "1"]
    assert main(["fit", *tiny, *run, "--model.fusion", "Gated", "--model.fusion.hidden", "6"]) == 0
    path = tmp_path / "run/checkpoints/best.ckpt"
    loaded = load_model(str(path))
    encoders = {"audio": SmallCNN(width=4, out_dim=8), "video": SmallFrameCNN(frames=2, width=4, out_dim=8)}
    twin = FusionClassifier(encoders, lambda dims, classes: Gated(dims, classes, hidden=6), num_classes=4)
    state = torch.load(path, weights_only=True)["state_dict"]
    twin.model.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})
    inputs = {"audio": torch.randn(3, 1, 16, 44), "video": torch.randn(3, 2, 1, 16, 16)}
    assert torch.equal(loaded(inputs), twin.eval()(inputs))


def test_the_training_of_the_model_does_not_matter(tmp_path: Path) -> None:
    """Optimizer, schedule and methods that only train are not rebuilt; the random state is left alone."""
    model = build(amr=AMR())
    section = architecture(optimizer={"class_path": "nowhere.Lion"}, amr={"weight": -1}, lr_scheduler="nowhere.Decay")
    save(model, section, tmp_path / "a.ckpt")
    state = torch.get_rng_state()
    loaded = load_model(tmp_path / "a.ckpt", trust=("tests",))
    assert torch.equal(state, torch.get_rng_state())
    assert_same_model(loaded, model)


def test_pretrained_weights_are_not_looked_for(tmp_path: Path) -> None:
    model = FusionClassifier({"video": ResNetEncoder(18, in_channels=1)}, num_classes=3)
    options = {"depth": 18, "in_channels": 1, "weights": str(tmp_path / "gone.pt")}
    model.config = {"encoders": {"video": {"class_path": "amr.encoders.ResNetEncoder", "init_args": options}}}
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    loaded = load_model(tmp_path / "a.ckpt", trust=("tests",))
    x = {"video": torch.randn(2, 1, 1, 32, 32)}
    assert torch.equal(loaded(x), model.eval()(x))


class Doubled(Fusion):
    def __init__(self, inner: Fusion) -> None:
        super().__init__(inner.dims, inner.num_classes, 1)
        del self.classifier
        self.inner, self.scale = inner, nn.Parameter(torch.tensor(2.0))

    def fuse(self, encodings: Any) -> Tensor:
        return self.inner.fuse(encodings)

    def classify(self, fused: Tensor) -> Tensor:
        return self.scale * self.inner.classify(fused)


class Wrapping(Regularizer):
    name = "wrapping"

    def wrap_head(self, head: Fusion) -> Fusion:
        return Doubled(head)


def test_a_method_of_the_users_that_wraps_the_head_comes_back(tmp_path: Path) -> None:
    model = build(extra=[Wrapping()])
    save(model, architecture(extra=[{"class_path": "tests.test_load.Wrapping"}]), tmp_path / "a.ckpt")
    loaded = load_model(tmp_path / "a.ckpt", trust=("tests",))
    assert_same_model(loaded, model)
    assert "head.scale" in loaded.state_dict()


# ------------------------------------------------------------------------------------------- made in Python, not by amr


class Options(Encoder):
    """Arguments of every plain kind, and some that it does not annotate."""

    def __init__(self, sizes: list[int], names: dict[str, float], path: Path | None = None, bias: bool = True) -> None:
        super().__init__()
        self.out_dim = sizes[-1]
        self.net = nn.Linear(sizes[0], self.out_dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


class Untyped(Encoder):
    """As one writes it in a notebook: no types, and a tuple that must stay one."""

    def __init__(self, sizes=(6, 8), *, act):  # type: ignore[no-untyped-def]
        super().__init__()
        first, self.out_dim = sizes + ()  # noqa: RUF005  # a list raises
        self.net = nn.Sequential(nn.Linear(first, self.out_dim), getattr(nn, act)())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


class Around(Encoder):
    """An encoder of an encoder."""

    def __init__(self, inner: Encoder) -> None:
        super().__init__()
        self.inner, self.out_dim = inner, inner.out_dim

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)
        return out


def trained(path: Path, *, encoder: Any = Linear, lightning: bool = True, **options: Any) -> FusionClassifier:
    """A model from Python alone, saved by a plain trainer or by `save_model`."""
    model = build(encoder=encoder, **options)
    if lightning:
        fit(model, Toy(), max_epochs=1).save_checkpoint(path)
    else:
        save_model(model, path)
    return model


def partial(dims: dict[str, int], classes: int) -> Fusion:
    return Gated(dims, classes, hidden=5)


PLAIN: dict[str, dict[str, Any]] = {
    "the class": {"fusion": Gated},
    "a partial": {"fusion": functools.partial(Gated, hidden=5)},
    "a lambda": {"fusion": lambda dims, classes: fusions.LowRank(dims, num_classes=classes, rank=3)},
    "a factory": {"fusion": partial},
    "all kinds of arguments": {
        "encoder": lambda: Options([6, 8], names={"a": 1.5}, path=Path("somewhere"), bias=False)
    },
    "arguments without types": {"encoder": lambda: cast(Any, Untyped)((6, 5), act="ReLU")},
    "an encoder of an encoder": {"encoder": lambda: Around(Around(Linear(6, 4)))},
    "a method that wraps the head": {"mmcosine": MMCosine(scale=4.0), "amr": AMR()},
    "a head that grows": {"aug": AUG(width=4, every=1, tolerance=0.0), "fusion": fusions.Shared},
    "a head behind gates": {"greedy": Greedy(), "fusion": Gated},
    "an own method that wraps the head": {"extra": [Wrapping()]},
}


@pytest.mark.parametrize("lightning", [True, False])
@pytest.mark.parametrize("name", PLAIN)
def test_a_model_from_python_comes_back(name: str, lightning: bool, tmp_path: Path) -> None:
    model = trained(tmp_path / "a.ckpt", lightning=lightning, **PLAIN[name])
    loaded = load_model(tmp_path / "a.ckpt", trust=("tests",))
    assert_same_model(loaded, model)
    save_model(loaded, tmp_path / "b.pt")
    assert_same_model(load_model(tmp_path / "b.pt", trust=("tests",)), model)


def test_a_bare_model_comes_back_without_trust(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoders = {"audio": SmallCNN(width=4, out_dim=8), "video": SmallFrameCNN(frames=2, width=4, out_dim=8)}
    model = FusionModel(encoders, Gated({name: e.out_dim for name, e in encoders.items()}, 4))
    loaded = load_model(save_model(model, tmp_path / "deep/a.pt"))
    inputs = {"audio": torch.randn(3, 1, 16, 44), "video": torch.randn(3, 2, 1, 16, 16)}
    assert torch.equal(loaded(inputs), model.eval()(inputs))


def as_module() -> Encoder:
    return as_encoder(nn.Sequential(nn.Linear(6, 8), nn.Tanh()))


@pytest.mark.parametrize("lightning", [True, False])
def test_a_module_of_the_users_needs_a_skeleton(lightning: bool, tmp_path: Path) -> None:
    model = trained(tmp_path / "a.ckpt", encoder=as_module, lightning=lightning)
    with pytest.raises(UserError, match=r"a\.ckpt: .*how model\.encoders\.audio was made.*load_model\(path, model="):
        load_model(tmp_path / "a.ckpt", trust=("tests",))
    skeleton = build(seed=5, encoder=as_module)
    assert_same_model(load_model(tmp_path / "a.ckpt", model=skeleton), model)
    assert_same_model(load_model(tmp_path / "a.ckpt", model=build(seed=6, encoder=as_module).model), model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fusion": Gated}, "of another architecture, it lacks head."),
        ({"modalities": ("video", "audio")}, "its modalities are video, audio; must be the file's, audio, video"),
        ({"modalities": ("audio",)}, "its modalities are audio; must be"),
        ({"encoder": lambda: Linear(6, 4)}, "of another architecture, "),
    ],
)
def test_another_skeleton_is_refused_and_keeps_its_weights(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    trained(tmp_path / "a.ckpt", lightning=False)
    other = build(seed=3, **options)
    before = weights(other)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        load_model(tmp_path / "a.ckpt", model=other)
    assert "\n" not in str(caught.value)
    assert_equal(before, weights(other))


def test_classes_that_are_not_trusted_or_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.ckpt"
    main_class = type("Net", (Linear,), {"__module__": "__main__", "__qualname__": "Net"})
    model = trained(path, encoder=main_class, lightning=False)
    with pytest.raises(UserError, match=r"__main__\.Net may not be built.*trust=\('__main__',\).*model=\.\.\.\)"):
        load_model(path)
    with pytest.raises(UserError, match=r"there is no __main__\.Net"):
        load_model(path, trust=("__main__",))
    monkeypatch.setattr("__main__.Net", main_class, raising=False)
    assert_same_model(load_model(path, trust=("__main__",)), model)
    trained(path, lightning=False)
    with pytest.raises(UserError, match=r"tests\.toy\.Linear may not be built.*trust=\('tests',\).*model="):
        load_model(path)

    class Local(Linear):
        pass

    model = trained(path, encoder=Local, lightning=False)
    with pytest.raises(UserError, match=r"cannot be imported.*model="):
        load_model(path, trust=("tests",))
    assert_same_model(load_model(path, model=build(encoder=Local)), model)


def test_a_layer_that_was_put_in_later_is_found(tmp_path: Path) -> None:
    model = build()
    cast(Any, model.model.encoders["audio"]).net[1] = nn.GELU()  # without parameters: shapes do not tell
    save_model(model, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"changed after it was made: model\.encoders\.audio\.net\.1 is a GELU.*Tanh"):
        load_model(tmp_path / "a.pt", trust=("tests",))


def test_a_fusion_of_other_sizes_than_the_factory_got_is_not_described() -> None:
    def factory(dims: dict[str, int], classes: int) -> Fusion:
        return Gated(dict(reversed(dims.items())), classes)

    assert build(fusion=factory).model.section["fusion"] is None
    assert build(fusion=lambda dims, classes: Gated(dims, classes + 1)).model.section["fusion"] is not None


def test_weights_that_an_inner_encoder_was_made_with_are_not_looked_for(tmp_path: Path) -> None:
    inner = ResNetEncoder(18, in_channels=1)
    model = FusionClassifier({"video": Around(inner)}, num_classes=3)
    path = save_model(model, tmp_path / "a.pt")
    content = torch.load(path, weights_only=True)
    described = content["amr"]["built"]["encoders"]["video"]["init_args"]["inner"]
    assert described == {"class_path": "amr.encoders.ResNetEncoder", "init_args": {"depth": 18, "in_channels": 1}}
    described["init_args"]["weights"] = str(tmp_path / "gone.pt")
    torch.save(content, path)
    x = {"video": torch.randn(2, 1, 1, 32, 32)}
    assert torch.equal(load_model(path, trust=("tests",))(x), model.model.eval()(x))


def test_only_recorded_classes_are_built_within_others(tmp_path: Path) -> None:
    path = save_model(FusionClassifier({"video": Around(Linear())}, num_classes=3), tmp_path / "a.pt")
    content = torch.load(path, weights_only=True)
    inner = {"class_path": "amr.callbacks.PredictionWriter", "init_args": {"out": "here"}}
    content["amr"]["built"]["encoders"]["video"]["init_args"]["inner"] = inner
    del content["checksum"]
    torch.save(content, path)
    with pytest.raises(UserError, match=r"amr\.callbacks\.PredictionWriter is no class that amr records"):
        load_model(path, trust=("tests",))


@pytest.mark.parametrize("built", [3, {"encoders": 3}, {"encoders": {"audio": 3}, "extra": 7}, {"fusion": None}])
def test_a_description_of_another_kind_is_refused(built: Any, tmp_path: Path) -> None:
    path = save_model(build(), tmp_path / "a.pt")
    content = torch.load(path, weights_only=True)
    content["amr"]["built"] = built
    del content["checksum"]
    torch.save(content, path)
    with pytest.raises(UserError, match=r"a\.pt: ") as caught:
        load_model(path, trust=("tests",))
    assert "\n" not in str(caught.value)


def test_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"

    def refused(message: str) -> None:
        with pytest.raises(UserError) as caught:
            load_model(path, trust=("tests",))
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)

    refused(f"{path} does not exist")
    path.write_bytes(b"PK")
    refused(f"{path} is not a checkpoint")
    torch.save({"state_dict": {}}, path)
    refused(f"{path} was not written by amr")
    older = build()
    save(older, None, path)
    content = torch.load(path, weights_only=True)
    del content["amr"]["built"]
    torch.save(content, path)
    refused(f"{path}: checkpoint: no model section in it")
    save(build(), architecture(fusion="amr.fusion.Gated"), path)
    refused(f"{path}: checkpoint: of another architecture, it lacks head.")
    section = architecture()
    section["encoders"]["audio"]["class_path"] = "nowhere.Encoder"
    save(build(), section, path)
    refused(f"{path}: checkpoint: model.encoders.audio.class_path: nowhere.Encoder may not be built")
