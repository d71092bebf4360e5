"""Compiled encoders and the channels-last layout: the same numbers, keys and checkpoints."""

import functools
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from amr.classifier import FusionClassifier
from amr.cli import main
from amr.encoders import ResNetEncoder, SmallCNN, SmallFrameCNN
from amr.encoders.base import Encoder
from amr.fusion import Concat
from amr.load import load_model
from amr.regularizers import AMR, MMPareto
from tests.cli.records import read_metrics
from tests.toy import Toy
from tests.training import build, fit, weights

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's and dynamo's


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is compiled, by the part of the compiler that needs no C++ and treats gradients as the whole of it does."""
    compiled: list[Any] = []
    compiler = functools.partial(torch.compile, backend="aot_eager")

    def spy(function: Any, mode: str) -> Any:
        assert mode in ("default", "max-autotune-no-cudagraphs")
        compiled.append(function.__self__)
        return compiler(function)

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", spy)
    return compiled


def test_compiled_encoders_train_to_the_same_weights(traced: list[Any]) -> None:
    """AMR, which needs second derivatives of the head, and MMPareto, which goes through encoders twice, on top."""
    methods: list[Any] = [lambda: {"amr": AMR(lr=0.2)}, lambda: {"mmpareto": MMPareto()}]
    for make in methods:
        plain, fast = build(**make()), build(**make(), compile_encoders=True)
        assert traced == list(fast.model.encoders.values())  # and no head
        assert plain.state_dict().keys() == fast.state_dict().keys()
        fit(plain, max_epochs=1)
        fit(fast, max_epochs=1)
        for key, value in weights(plain).items():
            torch.testing.assert_close(value, weights(fast)[key], rtol=0, atol=1e-6, msg=key)
        traced.clear()


@pytest.mark.usefixtures("traced")
def test_a_run_may_go_on_compiled_or_not(tmp_path: Path) -> None:
    def options(fast: bool) -> dict[str, Any]:
        return {"amr": AMR(momentum=0.5), "compile_encoders": "max-autotune-no-cudagraphs" if fast else False}

    whole = build(**options(False))
    fit(whole)
    for first in (False, True):
        trainer = fit(build(**options(first)), max_epochs=1)
        trainer.save_checkpoint(tmp_path / "half.ckpt")
        rest = build(seed=1, **options(not first))
        fit(rest, ckpt=tmp_path / "half.ckpt")
        for key, value in weights(whole).items():
            torch.testing.assert_close(value, weights(rest)[key], rtol=0, atol=1e-6, msg=key)


@pytest.mark.parametrize(
    ("encoder", "shape"),
    [
        (lambda: SmallCNN(width=4), (3, 1, 20, 24)),
        (lambda: SmallFrameCNN(frames=2, width=4), (3, 2, 1, 16, 16)),
        (lambda: ResNetEncoder(in_channels=3), (2, 2, 3, 32, 32)),
    ],
)
def test_channels_last_gives_the_same_outputs(encoder: Any, shape: tuple[int, ...]) -> None:
    def make(channels_last: bool) -> FusionClassifier:
        pl.seed_everything(0)
        return FusionClassifier({"video": encoder()}, Concat, channels_last=channels_last).eval()

    plain, fast = make(False), make(True)
    for key, value in plain.state_dict().items():
        assert torch.equal(value, fast.state_dict()[key]), key
    seen: list[bool] = []

    def look(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].is_contiguous(memory_format=torch.channels_last))

    for part in fast.modules():
        if isinstance(part, nn.Conv2d):
            assert part.weight.is_contiguous(memory_format=torch.channels_last)
            part.register_forward_pre_hook(look)
    x = torch.randn(shape)
    torch.testing.assert_close(plain({"video": x}), fast({"video": x}), rtol=0, atol=1e-5)
    assert seen
    assert all(seen)


def test_channels_last_3d() -> None:
    class Volume(Encoder):
        def __init__(self) -> None:
            super().__init__()
            self.out_dim, self.conv = 4, nn.Conv3d(2, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            assert self.conv.weight.is_contiguous(memory_format=torch.channels_last_3d)
            out: Tensor = self.conv(x)
            assert out.is_contiguous(memory_format=torch.channels_last_3d)
            return out.mean((2, 3, 4))

    model = FusionClassifier({"video": Volume()}, Concat, channels_last=True)
    assert model({"video": torch.randn(2, 2, 4, 5, 6)}).shape == (2, 2)


def test_unknown_modes_are_refused(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *tiny, "--model.compile_encoders", "reduce-overhead"]) == 2
    assert "model.compile_encoders" in (said := capsys.readouterr().err)
    assert "max-autotune-no-cudagraphs" in said


@pytest.mark.usefixtures("traced")
def test_a_run_with_all_of_it(tiny: list[str], tmp_path: Path) -> None:
    """Through the command line, in bf16; its checkpoint tests and loads uncompiled."""
    fast = ["--model.compile_encoders", "true", "--model.channels_last", "true", "--trainer.precision", "bf16-mixed"]
    options = ["--runs_dir", str(tmp_path), "--name", "fast", "--wandb", "disabled", "--model.amr.lr", "0.1"]
    short = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "1"]
    assert main(["fit", *tiny, *fast, *options, *short]) == 0
    checkpoint = tmp_path / "fast/checkpoints/best.ckpt"
    slow = ["--model.compile_encoders", "false", "--model.channels_last", "false"]
    assert main(["test", "--ckpt_path", str(checkpoint), *slow, "--wandb", "disabled"]) == 0
    assert 0 <= read_metrics(tmp_path / "fast")["test/acc"] <= 1
    model = load_model(checkpoint)
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert {f"model.{key}" for key in model.state_dict()} == {key for key in state if key.startswith("model.")}
    assert all(encoder._compiled_call_impl is None for encoder in model.encoders.values())


def test_the_whole_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)  # processes for it take longer to start
    plain, fast = build(amr=AMR(lr=0.2)), build(amr=AMR(lr=0.2), compile_encoders=True)
    fit(plain, max_epochs=1)
    fit(fast, max_epochs=1)
    for key, value in weights(plain).items():
        torch.testing.assert_close(value, weights(fast)[key], rtol=0, atol=1e-5, msg=key)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="16-mixed trains on a GPU only")
def test_mixed_precisions_on_a_gpu() -> None:  # pragma: no cover
    """Compiled, in 16-mixed and bf16-mixed, with AMR in fp32."""
    for precision in ("16-mixed", "bf16-mixed"):
        model = build(amr=AMR(lr=0.2), compile_encoders=True, channels_last=True)
        pl.Trainer(accelerator="gpu", devices=1, precision=precision, max_epochs=2, logger=False).fit(model, Toy())
        assert all(bool(value.isfinite().all()) for value in weights(model).values())
