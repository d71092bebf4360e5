"""A model back from its checkpoint alone."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from amr import fusion as fusions
from amr.classifier import FusionClassifier
from amr.cli import main
from amr.encoders import ResNetEncoder, SmallCNN, SmallFrameCNN
from amr.fusion import Fusion, Gated
from amr.load import load_model
from amr.regularizers import AMR, Regularizer
from amr.utils.errors import UserError
from tests.toy import Linear, Tokens, Toy
from tests.training import assert_equal, build, fit, weights

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(LeafSpec|num_workers|logging interval|tensorboardX|exists and is not empty)"
)
FUSIONS = ["Attention", "Concat", "FiLM", "Gated", "Late", "LowRank", "Shared", "Sum"]


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
    save(build(), None, path)
    refused(f"{path}: no model section in it; only the command line")
    save(build(), architecture(fusion="amr.fusion.Gated"), path)
    refused(f"{path}: checkpoint: of another architecture, it lacks head.")
    section = architecture()
    section["encoders"]["audio"]["class_path"] = "nowhere.Encoder"
    save(build(), section, path)
    refused(f"{path}: checkpoint: model.encoders.audio.class_path: nowhere.Encoder may not be built")
