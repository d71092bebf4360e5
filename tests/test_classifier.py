"""The training step: what AMR may change and may not, under every Trainer flag."""

import copy
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.strategies import FSDPStrategy
from torch import Tensor
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import StepLR

from amr.attribution import attribution_shares, ratio_penalty
from amr.callbacks import BestCheckpoint, Dominance, content
from amr.classifier import FusionClassifier
from amr.fusion import Attention, Concat, Fusion, Gated
from amr.fusion.base import FusionFactory
from amr.regularizers import AMR, Dropout, ModalityDropout, Regularizer, Step
from amr.utils.errors import UserError
from tests.ranks import assert_ranks_equal, fit_on, on_one_and_two_ranks, trainer_on
from tests.toy import Linear, Tokens, Toy
from tests.training import assert_equal, build, fit, weights

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(LeafSpec|num_workers|logging interval|tensorboardX|exists and is not empty)"
)


class Recorder(Callback):
    """Weights before and after each AMR step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pairs: list[tuple[dict[str, Tensor], dict[str, Tensor], list[Step]]] = []
        original = AMR.after_step

        def recorded(amr: AMR, steps: list[Step]) -> None:
            before = {key: value.clone() for key, value in steps[0].model.state_dict().items()}
            original(amr, steps)
            self.pairs.append((before, copy.deepcopy(steps[0].model.state_dict()), steps))

        monkeypatch.setattr(AMR, "after_step", recorded)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"level": "sample"},
    {"optimizer": "main"},
    {"ratio": {"audio": 1.0, "video": 3.0}, "ratio_epochs": 2},
    {
        "attribution": "integrated_gradients",
        "ig_steps": 3,
        "ratio_epochs": 2,
        "ratio_start": {"audio": 9.0, "video": 1.0},
    },
    {"attribution": "shapley"},
]


@pytest.mark.parametrize("flags", [{}, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options))
def test_weight_zero_equals_naive_bit_for_bit(flags: dict[str, Any], options: dict[str, Any]) -> None:
    naive, zero = build(dropout=Dropout(0.5)), build(dropout=Dropout(0.5), amr=AMR(weight=0.0, **options))
    fit(naive, **flags)
    fit(zero, **flags)
    assert_equal(weights(naive), weights(zero))
    acting = build(dropout=Dropout(0.5), amr=AMR(weight=1.0, **options))
    fit(acting, **flags)
    assert any(not torch.equal(a, b) for a, b in zip(weights(naive).values(), weights(acting).values(), strict=True))


@pytest.mark.parametrize("fusion", [Concat, Gated, Attention])
@pytest.mark.parametrize("encoder", [Linear, Tokens])
def test_the_amr_step_changes_the_head_alone(
    fusion: FusionFactory, encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(monkeypatch)
    fit(build(fusion=fusion, encoder=encoder, amr=AMR()))
    assert len(recorder.pairs) == 8
    for before, after, _ in recorder.pairs:
        changed = {key for key in before if not torch.equal(before[key], after[key])}
        assert changed
        assert all(key.startswith("head.") for key in changed)


@pytest.mark.parametrize("level", ["batch", "sample"])
@pytest.mark.parametrize("ratio", [None, {"video": 3.0, "audio": 1.0}])
@pytest.mark.parametrize("ig_steps", [None, 3])
def test_the_amr_step_is_one_sgd_step_down_the_penalty(
    level: Any, ratio: Any, ig_steps: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against autograd on the formula itself, with the weight and the decayed rate."""
    recorder = Recorder(monkeypatch)
    schedule = lambda optimizer: StepLR(optimizer, 1, gamma=0.1)  # noqa: E731
    attribution: Any = "integrated_gradients" if ig_steps else "gradient_input"
    amr = AMR(ratio, weight=0.7, lr=0.2, level=level, ig_steps=ig_steps, attribution=attribution)
    model = build(fusion=Gated, amr=amr, lr_scheduler=schedule)
    fit(model)
    target = torch.tensor([0.5, 0.5] if ratio is None else [0.25, 0.75])
    for index, (before, after, steps) in enumerate(recorder.pairs):
        head = copy.deepcopy(steps[0].model.head)
        head.load_state_dict({key[5:]: value for key, value in before.items() if key.startswith("head.")})
        shares = attribution_shares(head, steps[0].encodings, create_graph=True, ig_steps=ig_steps)
        penalty = ratio_penalty(shares, target) if level == "batch" else (shares - target).abs().sum(1).mean()
        gradients = torch.autograd.grad(penalty, list(head.parameters()), materialize_grads=True)
        rate = 0.2 * (1.0 if index < 4 else 0.1)
        for (name, parameter), gradient in zip(head.named_parameters(), gradients, strict=True):
            expected = parameter.detach() - rate * 0.7 * gradient
            torch.testing.assert_close(after[f"head.{name}"], expected, rtol=0, atol=1e-7)


def test_the_step_by_shapley_values_is_down_the_penalty_of_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a penalty written out for two modalities, over both accumulated micro-batches and their mean encoding."""
    recorder = Recorder(monkeypatch)
    fit(build(fusion=Gated, amr=AMR(lr=0.2, attribution="shapley")), accumulate_grad_batches=2)
    assert len(recorder.pairs) == 4
    for before, after, steps in recorder.pairs:
        assert len(steps) == 2
        head = copy.deepcopy(steps[0].model.head).eval()
        head.load_state_dict({key[5:]: value for key, value in before.items() if key.startswith("head.")})
        whole = {name: torch.cat([step.encodings[name] for step in steps]) for name in ("audio", "video")}
        mean = {name: encoding.mean(0).expand_as(encoding) for name, encoding in whole.items()}
        top = head(whole).argmax(1)

        def odds(audio: Tensor, video: Tensor, head: Fusion = head, top: Tensor = top) -> Tensor:
            probability = head({"audio": audio, "video": video}).softmax(1)[range(len(top)), top]
            return torch.logit(probability)

        full, none = odds(whole["audio"], whole["video"]), odds(mean["audio"], mean["video"])
        audio, video = odds(whole["audio"], mean["video"]), odds(mean["audio"], whole["video"])
        sizes = torch.stack([(full - video + audio - none) / 2, (full - audio + video - none) / 2]).abs()
        penalty = ((sizes / sizes.sum(0)).mean(1) - 0.5).abs().sum()
        gradients = torch.autograd.grad(penalty, list(head.parameters()), materialize_grads=True)
        for (name, parameter), gradient in zip(head.named_parameters(), gradients, strict=True):
            expected = parameter.detach() - 0.2 * gradient
            torch.testing.assert_close(after[f"head.{name}"], expected, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore:model.amr.ratio")  # 1 : 4 asks for more than video can tell
def test_it_drives_the_shares_to_the_ratio() -> None:
    for ratio in ({"audio": 1.0, "video": 1.0}, {"audio": 1.0, "video": 4.0}):
        data = Toy(clips=96, batch_size=12)
        model = build(amr=AMR(ratio, lr=0.2))
        trainer = fit(model, data, max_epochs=15)
        encodings = model.model.encode(data.inputs)
        share = attribution_shares(model.model.head, encodings).mean(0)
        assert share[0].item() == pytest.approx(ratio["audio"] / sum(ratio.values()), abs=0.03)
        assert trainer.callback_metrics["val/acc"] > 0.6
    naive = build()
    fit(naive, Toy(clips=96, batch_size=12), max_epochs=15)
    assert attribution_shares(naive.model.head, naive.model.encode(Toy(clips=96).inputs)).mean(0)[0] > 0.6


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options))
def test_accumulated_micro_batches_equal_one_batch(options: dict[str, Any]) -> None:
    big, small = (build(fusion=Gated, amr=AMR(**options)) for _ in range(2))
    fit(big, Toy(batch_size=16))
    fit(small, Toy(batch_size=8), accumulate_grad_batches=2)
    assert_equal(weights(big), weights(small), atol=1e-6)


class Term(Regularizer):
    """weight · R of detached encodings, as a term of the loss: what `optimizer: main` is to equal."""

    name = "term"

    def __init__(self, weight: float, level: str) -> None:
        super().__init__()
        self.weight, self.level = weight, level

    def losses(self, step: Step) -> dict[str, Tensor]:
        shares = attribution_shares(step.model.head, step.encodings, create_graph=True)
        target = torch.full((2,), 0.5)
        batch = self.level == "batch"
        return {"R": self.weight * (ratio_penalty(shares, target) if batch else (shares - 0.5).abs().sum(1).mean())}


class Gradients(Callback):
    """What the last step left in the gradients, before each backward."""

    def __init__(self) -> None:
        self.left: list[dict[str, Tensor]] = []

    def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        named = pl_module.model.named_parameters()
        self.left.append({name: p.grad.clone() for name, p in named if p.grad is not None})


@pytest.mark.parametrize("level", ["batch", "sample"])
@pytest.mark.parametrize("flags", [{}, {"gradient_clip_val": 0.1}, {"precision": "bf16-mixed"}], ids=str)
def test_optimizer_main_equals_a_term_of_the_loss(level: Any, flags: dict[str, Any]) -> None:
    """Under Adam with momentum, clipping and a schedule, which all see the sum of both gradients."""
    options: dict[str, Any] = {
        "fusion": Gated,
        "optimizer": lambda p: Adam(p, lr=1e-2),
        "lr_scheduler": lambda optimizer: StepLR(optimizer, 1, gamma=0.5),
    }
    main, term = (
        build(amr=AMR(optimizer="main", weight=0.7, level=level), **options),
        build(extra=[Term(0.7, level)], **options),
    )
    fit(main, **flags)
    fit(term, **flags)
    assert_equal(weights(main), weights(term), atol=1e-4 if "precision" in flags else 1e-6)
    naive = build(**options)
    fit(naive, **flags)
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(weights(main).values(), weights(naive).values(), strict=True))


def test_optimizer_main_leaves_the_encoders_gradient_bit_for_bit() -> None:
    """And the head's is the main one plus weight · dR/dθ."""
    start = build(fusion=Gated).model
    naive, main = Gradients(), Gradients()
    fit(build(fusion=Gated), max_steps=2, callbacks=[naive])
    fit(build(fusion=Gated, amr=AMR(optimizer="main", weight=0.7)), max_steps=2, callbacks=[main])
    first, other = naive.left[1], main.left[1]
    encoders = [name for name in first if name.startswith("encoders.")]
    assert encoders
    assert all(torch.equal(first[name], other[name]) for name in encoders)
    data = Toy()
    batch = data.collate(next(iter(data.train_dataloader().batch_sampler)))  # type: ignore[arg-type]
    encodings = start.encode(batch["inputs"])
    penalty = ratio_penalty(attribution_shares(start.head, encodings, create_graph=True), torch.ones(2))
    names, parameters = zip(*start.head.named_parameters(), strict=True)
    for name, slope in zip(names, torch.autograd.grad(penalty, parameters, materialize_grads=True), strict=True):
        expected = first[f"head.{name}"] + 0.7 * slope
        torch.testing.assert_close(other[f"head.{name}"], expected, rtol=0, atol=1e-7)


class Targets(Callback):
    """What AMR reports, every epoch."""

    def __init__(self) -> None:
        self.values: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.values.append(pl_module.regularizers.report())


def test_the_target_moves_linearly_to_the_ratio() -> None:
    given, measured = Targets(), Targets()
    ratio: dict[str, Any] = {"ratio": {"audio": 1.0, "video": 3.0}, "ratio_epochs": 2, "start_epoch": 1}
    fit(build(amr=AMR(**ratio, ratio_start={"audio": 9.0, "video": 1.0})), max_epochs=5, callbacks=[given])
    audio = [value.get("amr/target/audio") for value in given.values]
    assert audio == [None, *(pytest.approx(share) for share in (0.9, 0.575, 0.25, 0.25))]
    model = build(amr=AMR(**{**ratio, "start_epoch": 0}))
    data = Toy()
    encodings = model.model.encode(data.collate(next(iter(data.train_dataloader().batch_sampler)))["inputs"])  # type: ignore[arg-type]
    optimizer = lambda p: SGD(p, lr=0.0)  # noqa: E731  # the first AMR step still sees the first weights
    model.main_optimizer.optimizer = optimizer
    start = attribution_shares(model.model.head, encodings).mean(0)[0].item()
    fit(model, data, max_epochs=3, callbacks=[measured])
    audio = [value["amr/target/audio"] for value in measured.values]
    assert audio == [pytest.approx(share, abs=1e-6) for share in (start, (start + 0.25) / 2, 0.25)]


def test_the_ratio_of_unimodal_accuracies(tmp_path: Path) -> None:
    paths, accuracies = {}, {}
    for name in ("audio", "video"):
        pl.seed_everything(0)
        alone = FusionClassifier({name: Linear()}, Concat, num_classes=3)
        best = BestCheckpoint(str(tmp_path / name))
        fit(alone, enable_checkpointing=True, callbacks=[best], max_epochs=3)
        paths[name], accuracies[name] = str(tmp_path / name / "best.ckpt"), float(best.best_model_score or 0)
    assert accuracies["audio"] != accuracies["video"]
    first, second = (build(amr=AMR(**o)) for o in ({"ratio_from": paths}, {"ratio": accuracies}))
    fit(first)
    fit(second)
    assert_equal(weights(first), weights(second))
    wrong = {
        "is a model of 'video'; must be one of 'audio' alone": {**paths, "audio": paths["video"]},
        "nowhere.ckpt does not exist": {**paths, "audio": str(tmp_path / "nowhere.ckpt")},
        "names 'audio'; must be exactly the model's modalities": {"audio": paths["audio"]},
    }
    fit(FusionClassifier({"audio": Linear()}, Concat, num_classes=3)).save_checkpoint(tmp_path / "bare.ckpt")
    wrong["bare.ckpt holds no validation accuracy above 0"] = {**paths, "audio": str(tmp_path / "bare.ckpt")}
    content = torch.load(paths["audio"], weights_only=True)
    content["amr"]["num_classes"] = 4
    torch.save(content, tmp_path / "four.ckpt")
    wrong["four.ckpt has 4 classes; must have the data's 3"] = {**paths, "audio": str(tmp_path / "four.ckpt")}
    for message, given in wrong.items():
        with pytest.raises(UserError, match="model.amr.ratio_from") as caught:
            build(amr=AMR(ratio_from=given))
        assert message in str(caught.value)


def test_clipping_touches_the_main_gradient_only(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch)
    model = build(amr=AMR(lr=0.1), optimizer=lambda p: SGD(p, lr=1.0))
    start = weights(model)
    fit(model, max_epochs=1, gradient_clip_val=1e-9)
    moved = max((weights(model)[key] - start[key]).abs().max().item() for key in start if key.startswith("encoders."))
    assert moved < 1e-8
    before, after, _ = recorder.pairs[0]
    assert max((after[key] - before[key]).abs().max().item() for key in before) > 1e-4


def test_optimizer_main_under_16_mixed() -> None:
    """The scaled gradients are unscaled when the penalty's joins them; encodings are half precision's."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)  # type: ignore[attr-defined]
    half: dict[str, Any] = {"plugins": [pl.plugins.MixedPrecision("16-mixed", "cpu", scaler)]}
    main, term = build(amr=AMR(optimizer="main", weight=2.0)), build(extra=[Term(2.0, "batch")])
    fit(main, **half)
    fit(term, **half)
    assert_equal(weights(main), weights(term), atol=1e-4)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "64-true"])
def test_precisions(precision: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """16-mixed on the CPU, where Lightning only allows it by a plugin: the scaled gradients must not reach AMR."""
    recorder = Recorder(monkeypatch)
    reference = build(amr=AMR())
    fit(reference, max_epochs=1)
    expected = [(before, after) for before, after, _ in recorder.pairs]
    recorder.pairs.clear()
    flags: dict[str, Any] = {"precision": precision}
    if precision == "16-mixed":
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)  # type: ignore[attr-defined]
        flags = {"plugins": [pl.plugins.MixedPrecision("16-mixed", "cpu", scaler)]}
    data = Toy()
    if precision == "64-true":
        data.inputs = {name: x.double() for name, x in data.inputs.items()}
    trainer = fit(build(amr=AMR()), data, max_epochs=1, **flags)
    assert trainer.global_step == 4
    for (before, after), (before_low, after_low, steps) in zip(expected, recorder.pairs, strict=True):
        if precision.endswith("mixed"):
            assert next(iter(steps[0].encodings.values())).dtype != torch.float64
        for key in before:
            change, change_low = after[key] - before[key], after_low[key] - before_low[key]
            torch.testing.assert_close(change_low.float(), change, rtol=0.2, atol=0.01)


def test_unsupported_precision_and_strategy_are_refused_by_name() -> None:
    with pytest.raises(UserError, match="trainer.precision=bf16-true: must be one of"):
        fit(build(amr=AMR()), precision="bf16-true")
    model = build(amr=AMR())
    model._trainer = type("Stub", (), {"strategy": FSDPStrategy(), "precision": "32-true"})()
    with pytest.raises(UserError, match="trainer.strategy=FSDPStrategy: must be"):
        model.setup("fit")


def test_a_skipped_main_step_skips_amr(monkeypatch: pytest.MonkeyPatch) -> None:
    """16-mixed with gradients that overflow: the scaler takes no main step, so AMR must take none."""
    recorder = Recorder(monkeypatch)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126, growth_interval=10**6)  # type: ignore[attr-defined]
    model = build(amr=AMR())
    start = weights(model)
    fit(model, max_epochs=1, plugins=[pl.plugins.MixedPrecision("16-mixed", "cpu", scaler)])
    assert recorder.pairs == []
    assert_equal(start, weights(model))


class Look(Regularizer):
    """Notes where the schedule is."""

    name = "look"

    def __init__(self) -> None:
        super().__init__()
        self.factors: list[float] = []

    def losses(self, step: Step) -> dict[str, Tensor]:
        self.factors.append(step.lr_factor)
        return {}


def test_schedules_of_every_kind_run_with_amr() -> None:
    """The factor is over the configured rate: 1 at first, the plateau's and the cycle's own later."""
    plateau = lambda o: pl.cli.ReduceLROnPlateau(o, monitor="val/loss", patience=0, factor=0.5)  # noqa: E731
    cycle = lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=8)  # noqa: E731
    for schedule, interval in ((plateau, "epoch"), (cycle, "step")):
        look = Look()
        fit(build(amr=AMR(), extra=[look], lr_scheduler=schedule, scheduler_interval=interval))
        seen = look.factors
        assert len(seen) == 8
        assert all(0 < factor <= 1 for factor in seen)
        assert seen[0] == pytest.approx(1.0 if interval == "epoch" else 1 / 25)
        assert max(seen) == pytest.approx(1.0, abs=0.1)


def test_global_step_equals_batches_and_epochs_bound_the_method(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch)
    trainer = fit(build(amr=AMR(start_epoch=1, end_epoch=2)), max_epochs=3)
    assert trainer.global_step == 3 * 4
    acted = [any(not torch.equal(b[k], a[k]) for k in b) for b, a, _ in recorder.pairs]
    assert acted == [False] * 4 + [True] * 4 + [False] * 4
    assert fit(build(amr=AMR()), max_steps=5, max_epochs=-1).global_step == 5


def test_no_nan_from_dead_encoders_or_clips_that_lack_modalities() -> None:
    model = build(amr=AMR())
    for encoder in model.model.encoders.values():
        for parameter in encoder.parameters():
            torch.nn.init.zeros_(parameter)
    fit(model)
    assert all(torch.isfinite(value).all() for value in weights(model).values())
    lacking = build(amr=AMR(), modality_dropout=ModalityDropout(0.3))
    trainer = fit(lacking, Toy(lacking=True))
    assert all(torch.isfinite(value).all() for value in weights(lacking).values())
    assert torch.isfinite(trainer.callback_metrics["val/loss"])


def test_clips_that_lack_a_modality_are_left_out_of_the_penalty(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch)
    fit(build(amr=AMR(lr=0.2)), Toy(lacking=True), max_epochs=1)
    before, after, (step,) = recorder.pairs[0]
    assert step.present is not None
    rows = step.present["video"]
    assert 0 < rows.sum() < len(rows)
    assert torch.equal(step.encodings["video"][~rows], torch.zeros_like(step.encodings["video"][~rows]))
    head = copy.deepcopy(step.model.head)
    head.load_state_dict({key[5:]: value for key, value in before.items() if key.startswith("head.")})
    complete = {name: e[rows] for name, e in step.encodings.items()}
    penalty = ratio_penalty(attribution_shares(head, complete, create_graph=True), torch.ones(2))
    for (name, parameter), gradient in zip(
        head.named_parameters(),
        torch.autograd.grad(penalty, list(head.parameters()), materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(after[f"head.{name}"], parameter.detach() - 0.2 * gradient, rtol=0, atol=1e-7)


def test_amr_sees_clean_encodings(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch)
    fit(build(amr=AMR(), modality_dropout=ModalityDropout(0.9)), max_epochs=1)
    assert all((e != 0).any(1).all() for _, _, (step,) in recorder.pairs for e in step.encodings.values())


@pytest.mark.parametrize("modalities", [("a",), ("a", "b", "c"), ("a", "b", "c", "d")])
def test_any_number_of_modalities(modalities: tuple[str, ...]) -> None:
    pl.seed_everything(0)
    amr = AMR() if len(modalities) > 1 else None
    model = FusionClassifier({name: Linear() for name in modalities}, Concat, num_classes=3, amr=amr)
    trainer = fit(model, Toy(modalities=modalities))
    assert torch.isfinite(trainer.callback_metrics["val/mAP"])
    assert model.method == ("amr" if amr else "a")


def test_frozen_head_parameters_stay() -> None:
    model = build(amr=AMR())
    model.model.head.classifier.bias.requires_grad_(False)
    bias = model.model.head.classifier.bias.clone()
    fit(model)
    assert torch.equal(model.model.head.classifier.bias, bias)


@pytest.mark.parametrize(
    "amr",
    [
        {"momentum": 0.0},
        {"momentum": 0.9},
        {"optimizer": "main"},
        {"ratio_epochs": 3, "attribution": "integrated_gradients", "ig_steps": 2},
        {"attribution": "shapley"},
    ],
    ids=str,
)
def test_resuming_equals_going_on(tmp_path: Path, amr: dict[str, Any]) -> None:
    """From the checkpoint of epoch 1, with the second optimizer's momentum and the steps' randomness."""

    def options() -> dict[str, Any]:
        return {
            "amr": AMR(**amr),
            "dropout": Dropout(0.5),
            "modality_dropout": ModalityDropout(0.5, fill="mean"),
            "lr_scheduler": lambda optimizer: StepLR(optimizer, 1, gamma=0.5),
        }

    def checkpoint() -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)

    whole = build(**options())
    fit(whole, max_epochs=4, enable_checkpointing=True, callbacks=[checkpoint()])
    resumed = build(seed=1, **options())
    fit(resumed, max_epochs=4, ckpt=tmp_path / "epoch=1.ckpt", enable_checkpointing=True, callbacks=[checkpoint()])
    assert_equal(weights(whole), weights(resumed))
    saved = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)
    state = saved["amr"]["methods"].get("amr", {})
    assert ("optimizer" in state) == (amr.get("optimizer") != "main")
    assert ("measured" in state) == ("ratio_epochs" in amr)
    if "momentum" in amr:
        assert ("momentum_buffer" in state["optimizer"]["state"].get(0, {})) == (amr["momentum"] > 0)


def test_another_architecture_and_foreign_checkpoints_are_refused(tmp_path: Path) -> None:
    trainer = fit(build(), max_epochs=1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"another architecture, it lacks model.head.hidden.0.bias"):
        fit(build(fusion=lambda dims, classes: Concat(dims, classes, hidden=3)), ckpt=tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"weight has shape \(8, 6\), this model's has \(4, 6\)"):
        fit(build(encoder=lambda: Linear(out_dim=4)), ckpt=tmp_path / "a.ckpt")
    foreign = torch.load(tmp_path / "a.ckpt", weights_only=True)
    del foreign["amr"]
    torch.save(foreign, tmp_path / "b.ckpt")
    with pytest.raises(UserError, match="not written by amr"):
        fit(build(), ckpt=tmp_path / "b.ckpt")


def test_training_may_go_on_with_another_method(tmp_path: Path) -> None:
    trainer = fit(build(amr=AMR(), modality_dropout=ModalityDropout(0.2, fill="mean")), max_epochs=1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    fit(build(), ckpt=tmp_path / "a.ckpt")
    fit(build(amr=AMR(momentum=0.5)), max_epochs=1).save_checkpoint(tmp_path / "b.ckpt")
    fit(build(amr=AMR(momentum=0.5), dropout=Dropout()), ckpt=tmp_path / "b.ckpt")


# ------------------------------------------------------------------------------------------------------ regularizers


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AMR(weight=-1), "model.amr.weight=-1"),
        (lambda: AMR(ratio={"audio": 0.0, "video": 1.0}), "model.amr.ratio.audio=0.0"),
        (lambda: AMR(lr=0), "model.amr.lr=0"),
        (lambda: AMR(momentum=1), "model.amr.momentum=1"),
        (lambda: AMR(start_epoch=3, end_epoch=3), "start_epoch=3, end_epoch=3"),
        (lambda: AMR(optimizer="lion"), "model.amr.optimizer='lion': must be one of sgd, adam, main"),  # type: ignore[arg-type]
        (lambda: AMR(optimizer="main", momentum=0.9), "model.amr.momentum=0.9: with optimizer main"),
        (lambda: AMR(ratio_start={"audio": -1.0}, ratio_epochs=1), "model.amr.ratio_start.audio=-1.0"),
        (lambda: AMR(ratio_start={"audio": 1.0}), "model.amr.ratio_start: it needs ratio_epochs"),
        (lambda: AMR(ratio={"audio": 1.0}, ratio_from={"audio": "a.ckpt"}), "ratio and ratio_from exclude each other"),
        (lambda: AMR(ratio_epochs=0), "model.amr.ratio_epochs=0: must be an integer >= 1"),
        (lambda: AMR(attribution="lime"), "model.amr.attribution='lime': must be one of gradient_input, "),  # type: ignore[arg-type]
        (lambda: AMR(attribution="shapley", ig_steps=2), "attribution shapley and ig_steps exclude each other"),
        (lambda: AMR(attribution="integrated_gradients", ig_steps=0), "model.amr.ig_steps=0: must be an integer"),
        (lambda: Dominance(ig_steps=0), "dominance.ig_steps=0: must be an integer >= 1"),
        (lambda: AMR(level="clip"), "model.amr.level='clip': must be one of batch, sample"),  # type: ignore[arg-type]
        (lambda: Dropout(1.0), "model.dropout.p=1.0"),
        (lambda: ModalityDropout(1.0), "model.modality_dropout.p=1.0"),
        (lambda: build(amr=AMR({"audio": 1, "smell": 1})), "exactly the model's modalities 'audio', 'video'"),
        (lambda: build(amr=AMR({"audio": 1})), "exactly the model's modalities 'audio', 'video'"),
        (lambda: FusionClassifier({"audio": Linear()}, Concat, amr=AMR()), "model.amr: needs at least 2 modalities"),
        (lambda: FusionClassifier({"audio": Linear()}, modality_dropout=ModalityDropout()), "needs at least 2"),
        (lambda: build(amr=AMR(), extra=[AMR()]), "'amr' is given twice"),
        (lambda: build(amr=AMR(), extra=[Hermit()]), "model.hermit: cannot be combined with 'amr'"),
        (lambda: FusionClassifier({}), "at least one modality"),
        (lambda: FusionClassifier({"audio": Linear()}, num_classes=1), "model.num_classes=1: must be at least 2"),
    ],
)
def test_refused_by_name(make: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        make()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


class Hermit(Regularizer):
    name = "hermit"
    conflicts = frozenset({"amr"})


def test_old_spellings_of_the_attribution_are_taken_with_a_warning() -> None:
    assert (AMR().attribution, AMR().ig_steps) == ("gradient_input", None)
    assert AMR(attribution="integrated_gradients").ig_steps == 8
    assert AMR(attribution=None).attribution == "gradient_input"  # as every configuration of 0.1 has it
    for old in ({"attribution": None}, {}):
        with pytest.warns(UserWarning, match="ig_steps=3 without attribution is an old spelling") as caught:
            amr = AMR(ig_steps=3, **old)  # type: ignore[arg-type]
        assert (amr.attribution, amr.ig_steps, len(caught)) == ("integrated_gradients", 3, 1)


def test_adam_warns() -> None:
    with pytest.warns(UserWarning, match="adam"):
        amr = AMR(optimizer="adam", lr=1e-3)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec")
        fit(build(amr=amr, optimizer=lambda p: Adam(p, lr=1e-3)))


def test_hooks_are_called_in_the_order_of_the_step() -> None:
    calls: list[str] = []

    class Spy(Regularizer):
        name = "spy"
        needs_steps = True

        def on_encodings(self, encodings: Any, present: Any) -> Any:
            calls.append("on_encodings")
            return encodings

        def on_fused(self, fused: Tensor) -> Tensor:
            calls.append("on_fused")
            return fused

        def losses(self, step: Step) -> dict[str, Tensor]:
            calls.append("losses")
            assert step.logits.requires_grad
            return {"term": step.encodings["audio"].square().mean()}

        def on_gradients(self, steps: Any) -> None:
            calls.append("on_gradients")
            assert all(p.grad is not None for p in steps[0].model.parameters())
            assert not steps[0].logits.requires_grad

        def after_step(self, steps: Any) -> None:
            calls.append(f"after_step:{len(steps)}")

        def on_epoch_end(self, metrics: Any) -> None:
            calls.append("on_epoch_end")
            assert "val/acc" in metrics

    trainer = fit(build(extra=[Spy()]), Toy(clips=16), max_epochs=1, accumulate_grad_batches=2)
    once = ["on_encodings", "on_fused", "losses"]
    assert calls == [*once, *once, "on_gradients", "after_step:2", "on_epoch_end"]
    assert "train/loss/spy/term" in trainer.callback_metrics


def test_methods_run_in_order_whatever_the_order_given() -> None:
    model = build(extra=[Hermit()], dropout=Dropout(), modality_dropout=ModalityDropout())
    assert model.method == "modality_dropout+dropout+hermit"
    assert build().method == "naive"
    assert FusionClassifier({"audio": Linear()}, dropout=Dropout()).method == "audio+dropout"


# --------------------------------------------------------------------------------------------------------------- DDP

CASES: dict[str, tuple[dict[str, Any], bool]] = {
    "batch": ({"momentum": 0.5}, False),
    "sample": ({"momentum": 0.5, "level": "sample"}, False),
    "lack": ({"momentum": 0.5}, True),
    "main": ({"optimizer": "main", "weight": 2.0}, True),
    "moving": (
        {"ratio_epochs": 2, "attribution": "integrated_gradients", "ig_steps": 3, "momentum": 0.5},
        True,
    ),
    "shapley": ({"attribution": "shapley", "momentum": 0.5}, True),
}


def train(world: int, case: str) -> dict[str, Tensor]:
    if case == "confusion":
        return confusion(world)
    options, lacking = CASES[case]
    model = build(fusion=Gated, amr=AMR(**options))
    fit_on(world, model, Toy(batch_size=16, lacking=lacking))
    return weights(model)


@pytest.fixture(scope="module")
def ddp() -> dict[str, Any]:
    """Final weights of each case, by one process and by each of two gloo ranks."""
    return on_one_and_two_ranks(train, [*CASES, "confusion"])


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_equal_one_process_on_the_joined_batch(ddp: dict[str, Any], case: str) -> None:
    assert_ranks_equal(ddp[case], atol=1e-6)


def confusion(world: int) -> dict[str, Tensor]:
    """What a test of 31 clips gives W&B: the counts (C, C) of each chart that this rank logs, on one another."""
    run = SimpleNamespace(experiment=SimpleNamespace(disabled=False))
    logged: list[Tensor] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(content, "wandb_loggers", lambda trainer: [run])
        patch.setattr(content, "log_confusion", lambda logger, counts, labels: logged.append(counts.clone()))
        trainer = trainer_on(world, callbacks=[content.WandbContent()])
        trainer.test(build(), Toy(clips=31, batch_size=16), verbose=False)
    return {"counts": torch.stack(logged) if logged else torch.zeros(0)}


def test_the_confusion_matrix_counts_every_ranks_clips_once(ddp: dict[str, Any]) -> None:
    one, first, second = (part["counts"] for part in ddp["confusion"])
    label = Toy(clips=31).label
    assert one.shape == (1, 3, 3)
    assert torch.equal(one[0].sum(1), label.bincount())
    assert one[0].diag().sum() < 31  # with some off the diagonal: rows are not columns
    assert torch.equal(first, one)
    assert len(second) == 0  # rank 0 alone has a run
