"""Do no harm: evidence, the warning, the guard's rule, and what it does to trainings."""

import math
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from sklearn.linear_model import RidgeClassifier
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional as F
from torch.optim import SGD

from amr.classifier import FusionClassifier
from amr.fusion import Concat
from amr.model.encoded import Encoded
from amr.regularizers import AMR
from amr.regularizers.base import EpochState
from amr.regularizers.harm import (
    DoNoHarm,
    Trend,
    evidence,
    limit,
    lowered,
    overasked,
    ridge_outputs,
    tempered_loss,
    undone,
    upper_bound,
)
from amr.utils.errors import UserError
from tests.ranks import fit_on, on_one_and_two_ranks
from tests.regularizers.planted import Noise, Sums
from tests.training import assert_equal, build, fit, weights

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(LeafSpec|num_workers|logging interval|lr_scheduler=null|Total length of|no `val_dataloader`)"
)
EQUAL = {"audio": 0.5, "video": 0.5}


def trained(data: Noise | None = None, epochs: int = 3, rate: float = 3.0, **options: Any) -> tuple[Any, pl.Trainer]:
    """A classifier whose AMR, at a high rate, asks for what is not there."""
    flags = options.pop("flags", {})
    model = build(amr=AMR(lr=rate, **options), optimizer=lambda parameters: SGD(parameters, lr=0.1, momentum=0.9))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "model.amr.ratio: asks for more")
        trainer = fit(model, data or Noise(), max_epochs=epochs, **flags)
    return model, trainer


def harm_of(model: FusionClassifier) -> DoNoHarm:
    method = model.regularizers.methods["amr"]
    assert isinstance(method, AMR)
    return method.harm


# ----------------------------------------------------------------------------------------------------------- evidence


def test_the_probe_is_ridge_regression_on_standardised_features() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (60,), generator=generator)
    features = torch.randn(60, 5, generator=generator) * torch.tensor([1.0, 5.0, 0.1, 1.0, 1.0]) + 3
    features[:, 0] += labels
    scaler = StandardScaler().fit(features[:40].double())
    reference = RidgeClassifier(alpha=0.1 * 40).fit(scaler.transform(features[:40].double()), labels[:40])
    found = ridge_outputs(features[:40], labels[:40], features[40:], 3)
    # its targets are -1 and 1
    np.testing.assert_allclose(2 * found - 1, reference.decision_function(scaler.transform(features[40:].double())))


def test_the_tempered_loss_is_no_higher_than_at_any_sharpness_tried_and_is_guessing_s_for_equal_outputs() -> None:
    labels = torch.tensor([0, 1, 2, 0])
    assert tempered_loss(torch.zeros(4, 3).double(), labels) == pytest.approx(math.log(3))
    outputs = F.one_hot(labels, 3).double() * 0.3 + torch.tensor([0.0, 0.1, 0.2])
    for sharpness in (1.0, 2.0, 8.0, 64.0):
        assert tempered_loss(outputs, labels) <= float(F.cross_entropy(outputs * sharpness, labels)) + 1e-12


def test_evidence_is_what_guessing_leaves_and_its_bound_is_wilson_s() -> None:
    assert evidence(0.32, 0.25) == pytest.approx(0.07 / 0.75)
    assert evidence(0.1, 0.25) == 0
    assert evidence(1.0, 0.25) == 1
    for accuracy, clips in ((0.32, 100), (0.0, 10), (0.96, 200)):
        bound = upper_bound(accuracy, clips)  # the interval's end is where the accuracy is 1.96 standard errors below
        assert bound - accuracy == pytest.approx(1.96 * math.sqrt(bound * (1 - bound) / clips))


def test_a_target_asks_too_much_only_of_what_surely_knows_less_than_half_of_it() -> None:
    def over(audio: float, video: float, clips: int, target: float = 0.5) -> list[str]:
        shares = {"audio": 1 - target, "video": target}
        return overasked(shares, {"audio": audio, "video": video}, 0.25, clips)

    assert over(0.87, 0.32, 200) == ["video"]
    assert over(0.32, 0.87, 200) == ["audio"]
    assert over(0.956, 0.969, 200) == []
    assert over(0.847, 0.495, 200) == []
    assert over(0.87, 0.32, 10) == []  # too few clips to tell
    assert over(0.87, 0.32, 200, target=0.1) == []
    assert over(0.25, 0.25, 200) == []  # nobody knows anything
    three = {"a": 0.9, "b": 0.25, "c": 0.9}
    assert overasked(dict.fromkeys(three, 1 / 3), three, 0.25, 400) == ["b"]


# --------------------------------------------------------------------------------------------------------------- rule


def test_the_limit_is_of_the_reference_and_at_least_of_a_quarter_of_log_c() -> None:
    guess = math.log(4)
    assert limit(1.0, 0.1, guess) == pytest.approx(1.1)
    assert limit(0.01, 0.1, guess) == pytest.approx(0.01 + 0.1 * guess / 4)
    assert limit(1.0, 0.3, guess) == pytest.approx(1.3)


def test_the_factor_is_halved_three_times_and_then_zero_and_falls_faster_where_the_loss_is_far_up() -> None:
    factors = [1.0]
    while factors[-1]:
        factors.append(lowered(factors[-1], 1.5, 1.0))
    assert factors == [1.0, 0.5, 0.25, 0.125, 0.0]
    assert lowered(1.0, 5.0, 1.0) == pytest.approx(0.2)
    assert lowered(1.0, 9.0, 1.0) == 0
    assert lowered(1.0, math.nan, 1.0) == 0


def test_a_trend_keeps_the_lowest_of_before_and_says_what_falls() -> None:
    trend, guess = Trend(), math.log(4)
    seen = []
    for loss in (1.0, 0.8, 0.95, math.nan, 0.9, 0.5):
        trend.add(loss)
        seen.append((trend.best, trend.above(0.1, guess), trend.falls(0.1, guess)))
    assert seen == [
        (math.inf, False, True),  # guessing has 1.39
        (1.0, False, True),
        (0.8, True, False),
        (0.8, True, False),
        (0.8, True, True),  # the one before is no number
        (0.8, False, True),
    ]
    assert not trend.above(0.1, guess, 0.46)
    assert trend.above(0.1, guess, 0.3)


def judged(
    losses: list[float], asked: int = 1, train: list[float] | None = None, of: str = "factor", **options: Any
) -> list[float]:
    """The factor, or what is allowed, after each epoch of given validation losses."""
    model = build().model
    harm = DoNoHarm(True, 0.1)
    harm.__dict__.update({"_asked": asked, "accuracies": {"audio": 0.9, "video": 0.3}, "_blind": True, **options})
    found = []
    for epoch, loss in enumerate(losses):
        if train is not None:
            harm._sum, harm._count = train[epoch], 1
        metrics = {} if math.isinf(loss) else {"val/loss": torch.tensor(loss)}
        harm.judge(EpochState(metrics, model, epoch), lambda: EQUAL, epoch + 1, acting=True)
        found.append(getattr(harm, of))
    return found


def test_the_rule_halves_while_the_loss_is_up_and_not_falling() -> None:
    assert judged([1.0, 0.9, 0.98, 1.05, 1.2, 0.95, 1.0]) == [1, 1, 1, 0.5, 0.25, 0.25, 0.125]
    assert judged([1.0, 1.2, 1.3, 1.4, 1.5, 0.5]) == [1, 0.5, 0.25, 0.125, 0, 0]


def test_overfitting_alone_is_not_blamed_on_amr() -> None:
    assert judged([1.0, 1.2, 1.3], asked=0, train=[1.0, 0.5, 0.3]) == [1, 1, 1]
    assert judged([1.0, 1.2, 1.3], asked=0, train=[1.0, 1.3, 1.5]) == [1, 0.5, 0.25]
    assert judged([1.0, 1.2, 1.3], asked=1, train=[1.0, 0.5, 0.3]) == [1, 0.5, 0.25]
    assert judged([1.0, 1.2, 1.3], asked=0, train=[1.0, 0.5, 0.3], accuracies={}) == [1, 0.5, 0.25]


def test_a_model_that_never_got_good_is_compared_with_the_probe() -> None:
    assert judged([1.0, 0.98, 0.7], _probe=0.6) == [0.5, 0.25, 0.25]
    assert judged([1.0, 0.8, 0.85, 0.84], _probe=0.4) == pytest.approx([0.44, 0.44, 0.22, 0])
    assert judged([1.6, 1.2]) == pytest.approx([0.5, 0.5])  # worse than guessing among three
    assert judged([4.0, 1.2]) == pytest.approx([1.1 * math.log(3) / 4, 1.1 * math.log(3) / 4])
    assert judged([0.98, 0.8, 0.6, 0.43], _probe=0.4) == [1, 1, 1, 1]  # on its way


def test_an_epoch_without_validation_changes_nothing_and_training_decides_where_there_never_is_one() -> None:
    assert judged([1.0, 1.2, 1.2, 1.3]) == [1, 0.5, 0.5, 0.25]  # the third is the second's, left in the metrics
    assert judged([1.0, math.inf, 1.2], train=[1.0, 9.0, 9.0]) == [1, 1, 0.5]
    assert judged([math.inf] * 3, train=[1.0, 1.2, 1.3]) == [1, 0.5, 0.25]


def test_amr_waits_after_four_epochs_until_something_has_been_learnt(capfd: pytest.CaptureFixture[str]) -> None:
    guess, allowed = math.log(3), partial(judged, of="allowed")
    flat, low = [(1 + epoch / 1000) * guess for epoch in range(6)], 0.98 * guess - 1e-6
    assert allowed(flat) == [1, 1, 1, 0, 0, 0]
    said = "amr: waits: after 4 epochs the loss was never below 1.08, and guessing has 1.1"
    assert capfd.readouterr().err.count(said) == 1
    assert allowed([*flat[:4], low, 1.05 * low]) == [1, 1, 1, 0, 1, 1]  # once is enough
    assert allowed([low, *[1.05 * low] * 5]) == [1] * 6
    assert allowed(flat, train=[low] * 6) == [1, 1, 1, 0, 0, 0]  # what is learnt by heart does not count
    assert allowed([math.inf] * 6, train=flat) == [1, 1, 1, 0, 0, 0]
    assert allowed([math.inf] * 6, train=[*flat[:4], low, 1.05 * low]) == [1, 1, 1, 0, 1, 1]
    assert allowed(flat, guard=False) == [1] * 6


# ---------------------------------------------------------------------------------------------------------- trainings


def test_one_line_warns_once_of_what_was_measured_and_what_to_set(capfd: pytest.CaptureFixture[str]) -> None:
    model = build(amr=AMR(lr=0.1), optimizer=lambda parameters: SGD(parameters, lr=0.1, momentum=0.9))
    with pytest.warns(UserWarning, match="asks for more") as caught:
        trainer = fit(model, Noise(), max_epochs=4)
    (text,) = [str(each.message) for each in caught if "asks for more" in str(each.message)]
    assert "\n" not in text
    for part in (
        "model.amr.ratio: asks for more than video can tell: right alone in audio 9",
        "of 120 validation clips (chance 33.3%), target audio 0.50, video 0.50; a ratio by evidence is ",
        "model.amr.ratio={audio: 0.9",
        "model.amr.guard=true",
    ):
        assert part in text
    metrics = trainer.callback_metrics
    assert metrics["train/amr/evidence/audio"] > 0.85
    assert metrics["train/amr/evidence/video"] < 0.5
    assert "train/amr/guard" not in metrics
    assert "not measured" not in capfd.readouterr().err


def test_without_validation_evidence_is_of_training_clips_held_out_of_the_probe() -> None:
    model = build(amr=AMR(lr=0.1, guard=True), optimizer=lambda parameters: SGD(parameters, lr=0.1, momentum=0.9))
    with pytest.warns(UserWarning, match=r"of 120 training clips .* the guard lowers"):
        trainer = fit(model, Noise(validated=False), max_epochs=2)
    assert harm_of(model)._train.last is not None
    assert trainer.callback_metrics["train/amr/evidence/audio"] > 0.85


def test_where_clips_cannot_be_encoded_a_line_says_so_and_training_goes_on(capfd: pytest.CaptureFixture[str]) -> None:
    data = Noise(24)
    batches = [data.collate([*range(first, first + 8)]) for first in (0, 8, 16)]
    model = build(amr=AMR())
    trainer = pl.Trainer(
        max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
    )
    trainer.fit(model, torch.utils.data.DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    assert trainer.global_step == 6
    err = capfd.readouterr().err
    assert err.count("amr: what each modality knows alone is not measured: data.train_dataloader=DataLoader: ") == 1


@pytest.mark.parametrize("optimizer", ["sgd", "main"])
def test_the_guard_changes_nothing_until_it_acts_and_the_watch_nothing_at_all(
    optimizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"optimizer": optimizer, "epochs": 2, "rate": 0.1}
    guarded, _ = trained(guard=True, guard_margin=1e6, **options)
    watched, _ = trained(**options)
    monkeypatch.setattr(AMR, "on_epoch_end", lambda self, state: None)
    bare, _ = trained(**options)
    assert_equal(weights(guarded), weights(bare))
    assert_equal(weights(watched), weights(bare))


def test_a_step_is_undone_that_raises_the_loss_beyond_the_margin_or_leaves_it_beyond_guessing() -> None:
    guess = math.log(4)
    assert undone(1.0, 1.11, 0.1, guess)
    assert not undone(1.0, 1.09, 0.1, guess)
    assert undone(0.01, 0.01 + 0.11 * guess / 4, 0.1, guess)
    assert not undone(0.01, 0.01 + 0.09 * guess / 4, 0.1, guess)
    assert undone(1.5, 1.53, 0.1, guess)
    assert undone(1.6, 1.53, 0.1, guess)
    assert not undone(1.6, 1.51, 0.1, guess)
    assert undone(1.0, math.nan, 0.1, guess)
    assert not undone(math.nan, math.nan, 0.1, guess)  # without clips


@pytest.mark.parametrize("optimizer", ["sgd", "main"])
def test_the_factor_scales_the_step(optimizer: Any) -> None:
    def moved(factor: float, **options: Any) -> Tensor:
        amr = AMR(optimizer=optimizer, lr=1.0, **options)
        model = build(amr=amr, optimizer=lambda parameters: SGD(parameters, lr=1.0))
        amr.harm.factor = factor
        fit(model, Noise(24), max_epochs=1)
        return torch.cat([value.flatten() for value in weights(model).values()])

    none, half, same = (
        moved(0.0),
        moved(0.5),
        moved(1.0, weight=0.5),
    )
    assert torch.equal(none, moved(1.0, weight=0.0))
    torch.testing.assert_close(half, same, rtol=0, atol=1e-6)
    assert not torch.allclose(half, none, atol=1e-4)


def test_resuming_is_bit_equal_with_the_guard_at_work(tmp_path: Path) -> None:
    whole, trainer = trained(guard=True, epochs=4, rate=10.0)
    assert trainer.callback_metrics["train/amr/guard"] < 1
    _, first = trained(guard=True, epochs=2, rate=10.0)
    first.save_checkpoint(tmp_path / "first.ckpt")
    model = build(1, amr=AMR(lr=10.0, guard=True), optimizer=lambda parameters: SGD(parameters, lr=0.1, momentum=0.9))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*(LeafSpec|num_workers|logging interval|lr_scheduler=null)")
        second = fit(model, Noise(), ckpt=tmp_path / "first.ckpt", max_epochs=4)  # the warning was in the first half
    assert_equal(weights(model), weights(whole))
    keys = [key for key in trainer.callback_metrics if key.startswith("train/amr/")]
    assert {key: second.callback_metrics[key] for key in keys} == {key: trainer.callback_metrics[key] for key in keys}


def test_the_guard_keeps_the_loss_near_naive_fusion_s_where_one_modality_is_noise() -> None:
    def loss(method: AMR | None) -> float:
        model = build(amr=method, optimizer=lambda parameters: SGD(parameters, lr=0.05, momentum=0.9))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "model.amr.ratio: asks for more")
            return float(fit(model, Noise(), max_epochs=10).callback_metrics["val/loss"])

    naive, harmed, guarded = loss(None), loss(AMR(lr=5.0)), loss(AMR(lr=5.0, guard=True))
    assert harmed > 1.3 * naive
    assert guarded - naive < 0.6 * (harmed - naive)


def test_the_guard_lets_a_model_learn_what_only_both_modalities_tell() -> None:
    def accuracy(**options: Any) -> float:
        amr: dict[str, Any] = (
            {"amr": AMR(attribution="output", gradient="encoder", weight=3.0, **options)} if options else {}
        )
        optimizer = partial(SGD, lr=0.05, momentum=0.9)
        model = build(fusion=partial(Concat, hidden=16), optimizer=optimizer, **amr)
        return float(fit(model, Sums(), max_epochs=25).callback_metrics["val/acc"])

    naive, free, guarded = accuracy(), accuracy(guard=False), accuracy(guard=True)
    assert naive > 0.9
    assert free < 0.6
    assert guarded > 0.8


def test_steps_that_would_destroy_the_head_are_undone_with_momentum_or_without() -> None:
    for momentum in (0.0, 0.9):
        model = build(
            amr=AMR(lr=1e4, momentum=momentum, guard=True), optimizer=lambda parameters: SGD(parameters, lr=0.05)
        )
        trainer = fit(model, Noise(48), max_epochs=1)
        naive = build(optimizer=lambda parameters: SGD(parameters, lr=0.05))
        fit(naive, Noise(48), max_epochs=1)
        assert_equal(weights(model), weights(naive))
        assert trainer.callback_metrics["train/amr/undone"] == 1


def test_missing_modalities_and_three_of_them() -> None:
    data = Noise(modalities=("audio", "video", "text"), lacking=True)
    model = build(modalities=("audio", "video", "text"), amr=AMR(lr=3.0, guard=True))
    with pytest.warns(UserWarning, match="more than text can tell"):
        trainer = fit(model, data, max_epochs=4, accumulate_grad_batches=2, precision="bf16-mixed")
    harm = harm_of(model)
    assert math.isinf(harm._probe)  # of clips that have everything, as the main loss is not
    assert set(harm.report()) == {"evidence/audio", "evidence/video", "evidence/text", "guard", "undone"}
    assert trainer.global_step == 4 * 5


def train(world: int, case: str) -> dict[str, Any]:
    rates: dict[str, Any] = {"lr": 0.1, "momentum": 0.9}
    model = build(amr=AMR(lr=10.0, guard=True), optimizer=lambda parameters: SGD(parameters, **rates))
    warnings.filterwarnings("ignore", "model.amr.ratio: asks for more|.*(lr_scheduler=null|Total length|no `val_data)")
    fit_on(world, model, Noise(validated=case == "validated"), max_epochs=4)
    return {"weights": weights(model), "harm": harm_of(model).state()}


def test_two_ranks_decide_as_one_process_does() -> None:
    for case, (one, first, second) in on_one_and_two_ranks(train, ["validated", "training alone"]).items():
        assert_equal(first["weights"], second["weights"])
        assert first["harm"] == second["harm"]
        assert_equal(one["weights"], first["weights"], atol=1e-4)
        assert one["harm"]["factor"] == first["harm"]["factor"]
        assert one["harm"]["accuracies"] == first["harm"]["accuracies"]
        assert one["harm"]["_train"] == pytest.approx(first["harm"]["_train"], rel=1e-4)
        if case == "validated":
            assert first["harm"]["factor"] < 1


def test_a_margin_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match=r"^model.amr.guard_margin=0.0: must be a positive, finite number$"):
        AMR(guard_margin=0.0)


def test_what_was_measured_needs_two_classes_and_says_nothing_otherwise() -> None:
    harm = DoNoHarm(False, 0.1)
    one = Encoded(["a", "b"], torch.zeros(2, dtype=torch.int64), {m: torch.ones(2, 3) for m in EQUAL})
    harm.judge(EpochState({}, build().model, 0, lambda split, most: one), lambda: EQUAL, 1, acting=True)
    assert harm.report() == {}
