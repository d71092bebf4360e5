"""AMR by changes of the output: what its gradient is and reaches, under every way to train."""

import copy
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import SGD

from amr.attribution import attribution_shares, shapley_shares
from amr.classifier import FusionClassifier
from amr.fusion import Attention, Gated
from amr.regularizers import AMR, Dropout, MultiLoss, output
from amr.utils.errors import UserError
from tests.attribution.test_output import written_out
from tests.ranks import assert_ranks_equal, fit_on, on_one_and_two_ranks
from tests.regularizers.recorded import one_step
from tests.toy import Blind, Tokens, Toy
from tests.training import assert_equal, build, fit, weights

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(LeafSpec|num_workers|logging interval|tensorboardX|exists and is not empty)"
)
IN_LOSS: list[dict[str, Any]] = [
    {"gradient": "encoder"},
    {"gradient": "encoder", "push": "weak", "different_label": True},
    {"gradient": "encoder", "replacement": "mean"},
    {"gradient": "all", "level": "sample", "permutations": 2},
    {"gradient": "all", "replacement": "zeros", "push": "weak"},
]
OF_HEAD: list[dict[str, Any]] = [
    {},
    {"push": "weak", "different_label": True, "optimizer": "main"},
    {"replacement": "mean", "ratio_epochs": 2},
    {"replacement": "zeros", "level": "sample", "momentum": 0.5},
]


def amr(**options: Any) -> AMR:
    return AMR(attribution="output", **options)


def first_batch(data: Toy) -> dict[str, Any]:
    return data.collate(next(iter(data.train_dataloader().batch_sampler)))  # type: ignore[arg-type]


def next_clip(clips: Tensor, count: int, *_: Any, **__: Any) -> Tensor:
    """In place of a draw: the K clips that follow."""
    rows = torch.arange(len(clips)).unsqueeze(1)
    return (rows + torch.arange(1, count + 1)) % len(clips)


@pytest.mark.parametrize("push", ["both", "weak"])
@pytest.mark.parametrize("gradient", ["head", "encoder", "all"])
def test_the_main_gradient_has_that_of_the_penalty(gradient: Any, push: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against autograd on loops over clips, on every parameter, and on which encodings each part is cut off from."""
    monkeypatch.setattr(output, "other_clips", next_clip)
    batch, ratio = first_batch(Toy()), {"audio": 0.4, "video": 0.6}
    options: dict[str, Any] = {"gradient": gradient, "push": push, "permutations": 2, "weight": 0.7, "ratio": ratio}
    found = one_step(build(fusion=Gated, amr=amr(optimizer="main", **options)), batch)
    naive = one_step(build(fusion=Gated), batch)

    model = build(fusion=Gated).model.double()  # single precision is too coarse for differences of entropies
    encodings = model.encode({name: x.double() for name, x in batch["inputs"].items()})
    detached = {name: e.detach() for name, e in encodings.items()}
    frozen = copy.deepcopy(model.head)
    clips, donors = (encodings if gradient in kinds else detached for kinds in (("all",), ("encoder", "all")))
    picks = next_clip(batch["label"], 2)
    change = written_out(model.head, model.head if gradient == "all" else frozen, clips, donors, picks)
    target = torch.tensor([0.4, 0.6], dtype=torch.float64)
    if push == "weak":
        mean = (change / change.sum(1, keepdim=True)).mean(0).detach()
        assert mean[0] > 0.4  # the toy's audio dominates
        change = torch.stack([change[:, 0].detach(), change[:, 1]], dim=1)
    penalty = ((change / change.sum(1, keepdim=True)).mean(0) - target).abs().sum()
    named = dict(model.named_parameters())
    slopes = torch.autograd.grad(0.7 * penalty, [*named.values()], materialize_grads=True)
    for (name, slope), expected in zip(zip(named, slopes, strict=True), naive.values(), strict=True):
        torch.testing.assert_close(found[name], expected + slope.float(), rtol=1e-4, atol=1e-6)
    moved = {name for name in named if not torch.equal(found[name], naive[name])}
    reached = {name.split(".")[1] for name in moved if name.startswith("encoders.")}
    kinds = {"head": set(), "encoder": {"video"} if push == "weak" else {"audio", "video"}, "all": {"audio", "video"}}
    assert reached == kinds[gradient]
    assert any(name.startswith("head.") for name in moved)


def test_weak_never_lowers_a_modality() -> None:
    """Three modalities, two of them below their targets: a step down the penalty's gradient raises both their D's."""
    change = torch.tensor([[0.5, 0.02, 0.1], [0.6, 0.05, 0.01]], requires_grad=True)
    target = torch.tensor([0.4, 0.3, 0.3])
    rule = output.Output(push="weak")
    mean = (change / change.sum(1, keepdim=True)).mean(0).detach()
    shares = rule.shares(change, target, mean)
    ((shares.mean(0) - target).abs().sum()).backward()  # type: ignore[no-untyped-call]
    assert change.grad is not None
    assert not change.grad[:, 0].any()
    assert (change.grad[:, 1:] < 0).all()


@pytest.mark.parametrize("options", [*OF_HEAD, *IN_LOSS], ids=str)
def test_weight_zero_equals_naive_bit_for_bit(options: dict[str, Any]) -> None:
    naive, zero = (build(dropout=Dropout(0.5), amr=method) for method in (None, amr(weight=0.0, **options)))
    fit(naive, max_epochs=1)
    trainer = fit(zero, max_epochs=1)
    assert_equal(weights(naive), weights(zero))
    assert not [key for key in trainer.callback_metrics if "amr/" in key]
    acting = build(dropout=Dropout(0.5), amr=amr(**options))
    fit(acting, max_epochs=1)
    encoders = [not torch.equal(a, b) for a, b in zip(weights(naive).values(), weights(acting).values(), strict=True)]
    assert any(encoders)


@pytest.mark.parametrize("options", OF_HEAD, ids=str)
def test_accumulated_micro_batches_equal_one_batch(options: dict[str, Any]) -> None:
    big, small = (build(fusion=Gated, amr=amr(**options)) for _ in range(2))
    fit(big, Toy(batch_size=16))
    fit(small, Toy(batch_size=8), accumulate_grad_batches=2)
    assert_equal(weights(big), weights(small), atol=1e-6)


def test_in_the_loss_each_micro_batch_has_its_own_penalty() -> None:
    trainer = fit(build(amr=amr(gradient="encoder")), Toy(batch_size=4), max_epochs=1, accumulate_grad_batches=2)
    assert trainer.global_step == 4
    metrics = trainer.callback_metrics
    assert metrics["train/loss/amr/penalty"] == pytest.approx(float(metrics["train/amr/penalty"]), rel=1e-5)


@pytest.mark.parametrize(
    "flags", [{}, {"precision": "bf16-mixed"}, {"precision": "16-mixed"}, {"precision": "64-true"}], ids=str
)
@pytest.mark.parametrize("options", [{}, {"gradient": "encoder"}, {"gradient": "all", "push": "weak"}], ids=str)
def test_tokens_missing_clips_three_modalities_and_precisions(options: dict[str, Any], flags: dict[str, Any]) -> None:
    if flags.get("precision") == "16-mixed":  # on the CPU, Lightning only allows it by a plugin
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)  # type: ignore[attr-defined]
        flags = {"plugins": [pl.plugins.MixedPrecision("16-mixed", "cpu", scaler)]}
    modalities = ("audio", "video", "text")
    data = Toy(modalities=modalities, lacking=True)
    if flags.get("precision") == "64-true":
        data.inputs = {name: x.double() for name, x in data.inputs.items()}
    methods: dict[str, Any] = {"amr": amr(**options), "multi_loss": MultiLoss()}
    model = build(fusion=Attention, encoder=Tokens, modalities=modalities, dropout=Dropout(0.3), **methods)
    trainer = fit(model, data, max_epochs=1, **flags)
    assert all(value.isfinite().all() for value in weights(model).values())
    shares = [float(trainer.callback_metrics[f"train/amr/share/{name}"]) for name in modalities]
    assert sum(shares) == pytest.approx(1, abs=1e-4)
    assert all(share > 0 for share in shares)


@pytest.mark.parametrize("options", [{"momentum": 0.5}, {"gradient": "all"}], ids=str)
@pytest.mark.parametrize("data", [Blind(), Toy(batch_size=1, clips=4)], ids=["blind", "alone"])
def test_without_a_clip_to_repair_nothing_happens(options: dict[str, Any], data: Toy) -> None:
    naive, model = build(), build(amr=amr(**options))
    fit(naive, data)
    trainer = fit(model, data)
    assert_equal(weights(naive), weights(model))
    assert "train/amr/share/audio" not in trainer.callback_metrics


def test_missing_clips_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []

    def spied(clips: Tensor, count: int, *_: Any, **__: Any) -> Tensor:
        seen.append([len(clips), len(set(clips.tolist()))])
        return next_clip(clips, count)

    monkeypatch.setattr(output, "other_clips", spied)
    data = Toy(lacking=True)
    fit(build(amr=amr(gradient="all")), data, max_epochs=1)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0)).view(4, 8)
    assert seen == [[int((rows % 4 != 0).sum())] * 2 for rows in order]


@pytest.mark.parametrize("options", [{"momentum": 0.9}, *IN_LOSS[1:4:2]], ids=str)
def test_resuming_equals_going_on(options: dict[str, Any], tmp_path: Path) -> None:
    def model(seed: int = 0) -> FusionClassifier:
        return build(seed, amr=amr(**options), dropout=Dropout(0.5))

    whole, half, resumed = model(), model(), model(1)
    fit(whole, max_epochs=3)
    fit(half, max_epochs=1).save_checkpoint(tmp_path / "half.ckpt")
    fit(resumed, max_epochs=3, ckpt=tmp_path / "half.ckpt")
    assert_equal(weights(whole), weights(resumed))


def test_it_drives_the_changes_to_the_ratio() -> None:
    """And with them the Shapley share of the log-odds, which is not what is trained."""
    decision = {}
    for case, method in {"naive": None, "encoder": amr(gradient="encoder", push="weak", weight=2.0)}.items():
        data = Toy(clips=96, batch_size=12)
        model = build(amr=method, optimizer=lambda p: SGD(p, lr=0.1))
        fit(model, data, max_epochs=6)
        encodings = model.model.encode(data.inputs)
        mean = {name: e.mean(0, keepdim=True) for name, e in encodings.items()}
        decision[case] = float(shapley_shares(model.model.head, encodings, mean).mean(0)[0])
    assert decision["naive"] > decision["encoder"] + 0.05, decision


# ---------------------------------------------------------------------------------------------------------------- log


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"level": "sample"},
        {"optimizer": "main"},
        {"attribution": "integrated_gradients"},
        {"attribution": "shapley"},
        {"attribution": "output"},
        {"attribution": "output", "gradient": "encoder"},
    ],
    ids=str,
)
def test_every_attribution_logs_penalty_shares_decision_shares_and_rate(options: dict[str, Any]) -> None:
    """By hand, of a model that stands still; the penalty's mean is over steps."""
    method = AMR(ratio={"audio": 3.0, "video": 1.0}, lr=1e-12, **options)
    model = build(fusion=Gated, amr=method, optimizer=lambda p: SGD(p, lr=1e-12))
    data = Toy(batch_size=16)
    metrics = fit(model, data, max_epochs=1).callback_metrics
    penalties, decisions, shares = [], [], []
    for rows in torch.randperm(32, generator=torch.Generator().manual_seed(0)).view(2, 16):
        encodings = model.model.encode(data.collate(rows.tolist())["inputs"])
        mean = {name: e.mean(0, keepdim=True) for name, e in encodings.items()}
        decisions.append(shapley_shares(model.model.head, encodings, mean).mean(0)[0].item())
        if options.get("attribution", "") in ("", "gradient_input"):
            each = attribution_shares(model.model.head, encodings)
            shares.append(each.mean(0)[0].item())
            ratio = torch.tensor([0.75, 0.25])
            if options.get("level") == "sample":
                penalties.append((each - ratio).abs().sum(1).mean().item())
            else:
                penalties.append((each.mean(0) - ratio).abs().sum().item())
    assert float(metrics["train/amr/decision_share/audio"]) == pytest.approx(sum(decisions) / 2, abs=1e-4)
    if shares:
        assert float(metrics["train/amr/share/audio"]) == pytest.approx(sum(shares) / 2, abs=1e-4)
        assert float(metrics["train/amr/penalty"]) == pytest.approx(sum(penalties) / 2, abs=1e-4)
    else:
        share = float(metrics["train/amr/share/audio"])
        assert 2 * abs(share - 0.75) <= float(metrics["train/amr/penalty"]) + 1e-4
    assert float(metrics["train/amr/share/video"]) == pytest.approx(
        1 - float(metrics["train/amr/share/audio"]), abs=1e-5
    )
    assert float(metrics["train/amr/lr"]) == pytest.approx(1e-12)


# ------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient": "all"}, "model.amr.gradient='all': must be left out with attribution gradient_input"),
        (
            {"push": "weak", "attribution": "shapley"},
            "model.amr.push='weak': must be left out with attribution shap",
        ),
        ({"replacement": "mean"}, "model.amr.replacement='mean': must be left out"),
        ({"permutations": 0}, "model.amr.permutations=0: must be left out"),
        ({"different_label": True}, "model.amr.different_label=True: must be left out"),
        ({"attribution": "output", "permutations": 0}, "model.amr.permutations=0: must be an integer >= 1, or null"),
        ({"attribution": "output", "gradient": "body"}, "model.amr.gradient='body': must be one of head, encoder, all"),
        ({"attribution": "output", "push": "up"}, "model.amr.push='up': must be one of both, weak"),
        (
            {"attribution": "output", "replacement": "noise"},
            "model.amr.replacement='noise': must be one of permutation, mean, zeros",
        ),
        (
            {"attribution": "output", "replacement": "zeros", "permutations": 2},
            "model.amr.permutations=2: must be null with replacement zeros",
        ),
        (
            {"attribution": "output", "replacement": "mean", "different_label": True},
            "model.amr.different_label=True: must be false with replacement mean",
        ),
        (
            {"attribution": "output", "replacement": "zeros", "gradient": "encoder"},
            "model.amr.replacement='zeros': must be permutation or mean with gradient encoder",
        ),
        ({"attribution": "output", "score": "logit"}, "model.amr.score='logit': must be probability"),
        (
            {"attribution": "output", "gradient": "all", "momentum": 0.5},
            "model.amr.momentum=0.5: must be 0 with gradient all",
        ),
        (
            {"attribution": "output", "gradient": "all", "optimizer": "adam"},
            "model.amr.optimizer='adam': must be main or left out with gradient all",
        ),
        ({"attribution": "output", "ig_steps": 3}, "attribution output and ig_steps exclude each other"),
    ],
)
def test_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        AMR(**options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------------------------- DDP

CASES: dict[str, tuple[dict[str, Any], bool]] = {
    "head": ({"momentum": 0.5}, True),
    "encoder": ({"gradient": "encoder", "weight": 2.0}, True),
    "weak": (IN_LOSS[1], False),
    "mean": (IN_LOSS[2], True),
    "all": (IN_LOSS[3], True),
    "head of different labels": (OF_HEAD[1], True),
}


class Few(Toy):
    """Of four clips that a batch has, only those of even places have the video: with two ranks, one has none."""

    def collate(self, indices: list[int]) -> dict[str, Any]:
        batch = super().collate(indices)
        places = self.order()
        batch["present"] = {"video": torch.tensor([places[i] % 2 == 0 for i in indices])}
        return batch

    def order(self) -> dict[int, int]:
        epoch = self.trainer.current_epoch if self.trainer else 0
        order = torch.randperm(len(self.label), generator=torch.Generator().manual_seed(epoch)).tolist()
        return {index: place for place, index in enumerate(order)}


def train(world: int, case: str) -> dict[str, Tensor]:
    few = case.startswith("few ")
    options, lacking = CASES[case.removeprefix("few ")]
    model = build(fusion=Gated, amr=amr(**options))
    data = Few(batch_size=16) if few else Toy(batch_size=16, lacking=lacking)
    fit_on(world, model, data, max_epochs=1 if few else 2, limit_val_batches=0)
    means = {f"reported {key}": torch.tensor(value) for key, value in model.regularizers.report().items()}
    return {**weights(model), **means}


RANKS = [*CASES, "few head", "few all"]


@pytest.fixture(scope="module")
def ddp() -> dict[str, Any]:
    """Final weights of each case, and what was logged, by one process and by each of two gloo ranks."""
    return on_one_and_two_ranks(train, RANKS)


@pytest.mark.parametrize("case", RANKS)
def test_two_ranks_equal_one_process_on_the_joined_batch(ddp: dict[str, Any], case: str) -> None:
    assert_ranks_equal(ddp[case], atol=2e-6)
