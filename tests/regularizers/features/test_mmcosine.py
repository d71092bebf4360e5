"""MMCosine: the cosines, what the wrapped head promises, and that training and evaluation use the same logits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F

from amr.attribution import attribution_shares, ratio_penalty
from amr.classifier import FusionClassifier
from amr.fusion import Attention, Concat, FiLM, Fusion, Gated, Late, LowRank, Sum
from amr.regularizers import AMR, Regularizer, Step
from amr.regularizers.features.mmcosine import CosineHead, MMCosine, cosine_logits
from amr.utils.errors import UserError
from tests.ranks import assert_ranks_equal, fit_on, on_one_and_two_ranks
from tests.toy import Linear, Tokens, Toy
from tests.training import assert_equal, build, fit, weights

pytestmark = pytest.mark.filterwarnings("ignore:.*(LeafSpec|num_workers|logging interval|exists and is not empty)")
DIMS = {"a": 6, "b": 4, "c": 5}
LINEAR: dict[str, Callable[..., Fusion]] = {"concat": Concat, "sum": Sum, "late": Late}
every_fusion = pytest.mark.parametrize("name", LINEAR)


def random(rows: int | tuple[int, ...], seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (rows,) if isinstance(rows, int) else rows
    return {m: torch.randn(*shape, size, generator=generator, dtype=torch.double) for m, size in DIMS.items()}


def by_pairs(encodings: dict[str, Tensor], weights: dict[str, Tensor], scale: float) -> Tensor:
    """The logits one clip and class at a time, by torch's own cosine."""
    rows, classes = len(next(iter(encodings.values()))), len(next(iter(weights.values())))
    logits = [
        sum(F.cosine_similarity(e[i], weights[m][c], dim=0).item() for m, e in encodings.items())
        for i in range(rows)
        for c in range(classes)
    ]
    return scale * torch.tensor(logits, dtype=torch.double).view(rows, classes)


def head(name: str = "concat", scale: float = 10.0, seed: int = 0) -> CosineHead:
    torch.manual_seed(seed)
    return CosineHead(LINEAR[name](DIMS, 3), scale).double()


# -------------------------------------------------------------------------------------------------- the pure function


def test_logits_equal_pairwise_cosines() -> None:
    encodings, w = random(7), random(4, seed=1)
    logits = cosine_logits(encodings, w, 3.0)
    torch.testing.assert_close(logits, by_pairs(encodings, w, 3.0), rtol=1e-12, atol=1e-12)
    assert logits.abs().max() <= 3.0 * len(DIMS)
    aligned = cosine_logits({"a": w["a"]}, {"a": w["a"]}, 3.0)
    torch.testing.assert_close(aligned.diagonal(), torch.full((4,), 3.0, dtype=torch.double))


@pytest.mark.parametrize("size", [1e-11, 1e-6, 1e6, 1e19, 1e30])
def test_lengths_do_not_count(size: float) -> None:
    """Also where their squares would under- or overflow in single precision."""
    encodings, w = random(7), random(4, seed=1)
    single = {m: (e * size).float().requires_grad_() for m, e in encodings.items()}
    logits = cosine_logits(single, {m: 1e-5 * x.float() for m, x in w.items()}, 10.0)
    torch.testing.assert_close(logits.double(), by_pairs(encodings, w, 10.0), rtol=1e-5, atol=1e-4)
    for leaf in torch.autograd.grad(logits.sum(), list(single.values())):
        assert leaf.isfinite().all()
        assert leaf.any()


@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-38, 1e-20, 1e-12])
def test_zero_rows_are_finite_to_second_order(size: float) -> None:
    """A modality that a clip lacks, or a dead weight: no vote, and gradients of ordinary size."""
    encodings, w = ({m: x.float() for m, x in made.items()} for made in (random(5), random(3, seed=1)))
    with torch.no_grad():
        encodings["a"][:2] *= 0
        encodings["a"][:2] += size
        w["b"][1] *= size
    for leaf in (*encodings.values(), *w.values()):
        leaf.requires_grad_()
    logits = cosine_logits(encodings, w, 10.0)
    without = cosine_logits({m: encodings[m] for m in ("b", "c")}, w, 10.0)
    torch.testing.assert_close(logits[:2], without[:2], rtol=0, atol=1e-5)
    leaves = [*encodings.values(), *w.values()]
    first = torch.autograd.grad(F.cross_entropy(logits, torch.tensor([0, 1, 2, 0, 1])), leaves, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)  # type: ignore[arg-type]
    for gradient in (*first, *second):
        assert gradient.isfinite().all()
        assert gradient.abs().max() < 1e3


def test_gradients_to_second_order() -> None:
    generator = torch.Generator().manual_seed(0)
    e, w = (torch.randn(2, 3, generator=generator, dtype=torch.double, requires_grad=True) for _ in range(2))

    def logits(e: Tensor, w: Tensor) -> Tensor:
        return cosine_logits({"a": e}, {"a": w}, 2.0)

    assert torch.autograd.gradcheck(logits, (e, w))
    assert torch.autograd.gradgradcheck(logits, (e, w))


# ----------------------------------------------------------------------------------------------------- the wrapped head


@every_fusion
def test_the_head_keeps_fusions_promises(name: str) -> None:
    wrapped, encodings = head(name), random(5)
    linear = wrapped.linear.modality_weights()
    assert linear is not None
    logits = wrapped(encodings)
    torch.testing.assert_close(logits, by_pairs(encodings, linear, 10.0), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(logits, cosine_logits(encodings, linear, 10.0))
    torch.testing.assert_close(wrapped(dict(reversed(encodings.items()))), logits)
    assert (wrapped.dims, wrapped.num_classes) == (DIMS, 3)
    fused = wrapped.fuse(encodings)
    assert fused.shape == (5, sum(DIMS.values()))
    torch.testing.assert_close(wrapped.classify(fused), logits)
    own = wrapped.unimodal_logits(encodings)
    assert list(own) == list(DIMS)
    torch.testing.assert_close(own["b"], by_pairs({"b": encodings["b"]}, linear, 10.0), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(torch.stack([*own.values()]).sum(0), logits)
    alone = wrapped({m: e if m == "b" else 0 * e for m, e in encodings.items()})
    torch.testing.assert_close(alone, own["b"])
    assert wrapped.modality_weights() is None  # cosines are not linear
    tokens = random((5, 3), seed=2)
    torch.testing.assert_close(wrapped(tokens), wrapped({m: e.mean(1) for m, e in tokens.items()}))


@every_fusion
def test_every_parameter_takes_part(name: str) -> None:
    """DDP waits for those that do not: the biases are gone, and nothing else is."""
    torch.manual_seed(0)
    linear = LINEAR[name](DIMS, 3)
    before = {f"linear.{key}" for key, _ in linear.named_parameters()}
    wrapped = CosineHead(linear, 10.0).double()
    parameters = dict(wrapped.named_parameters())
    assert before - set(parameters) == {key for key in before if key.endswith("bias")} != set()
    assert set(wrapped.state_dict()) == set(parameters)
    loss = F.cross_entropy(wrapped(random(5)), torch.tensor([0, 1, 2, 0, 1]))
    assert all(g.any() for g in torch.autograd.grad(loss, list(parameters.values())))  # raises for an unused one


@every_fusion
@pytest.mark.parametrize("tokens", [False, True])
def test_the_penalty_on_shares_reaches_the_head(name: str, tokens: bool) -> None:
    """With clips that lack a modality, or all; against finite differences."""
    wrapped = head(name)
    encodings = random((6, 3) if tokens else 6)
    encodings["a"][0] = 0
    for e in encodings.values():
        e[1] = 0
    parameters, ratio = list(wrapped.parameters()), torch.tensor([1.0, 2.0, 1.0])
    shares = attribution_shares(wrapped, encodings, create_graph=True)
    assert shares[0, 0] == 0
    assert not shares[1].any()
    torch.testing.assert_close(shares.sum(1), torch.tensor([1, 0, 1, 1, 1, 1]).float(), check_dtype=False)
    gradients = torch.autograd.grad(ratio_penalty(shares, ratio), parameters)

    def penalty() -> float:
        return ratio_penalty(attribution_shares(wrapped, encodings), ratio).item()

    for parameter, gradient in zip(parameters, gradients, strict=True):
        assert gradient.any()
        direction, values = torch.randn_like(parameter), []
        for sign in (1, -2):
            with torch.no_grad():
                parameter.add_(direction, alpha=sign * 1e-6)
            values.append(penalty())
        with torch.no_grad():
            parameter.add_(direction, alpha=1e-6)
        assert (gradient * direction).sum().item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4, abs=1e-7)


def test_the_attribution_of_a_cosine_is_across_it() -> None:
    """Gradient times input sums to zero in each modality, as lengths do not count, yet it does not vanish."""
    encodings = {m: e.requires_grad_() for m, e in random(5).items()}
    gradients = torch.autograd.grad(head()(encodings)[:, 0].sum(), list(encodings.values()))
    for gradient, e in zip(gradients, encodings.values(), strict=True):
        torch.testing.assert_close((gradient * e).sum(1), torch.zeros(5).double())
        assert (gradient * e).norm(dim=1).min() > 0.1


@pytest.mark.parametrize(
    ("fusion", "shown"),
    [
        (Gated, "Gated"),
        (FiLM, "FiLM"),
        (LowRank, "LowRank"),
        (lambda dims, classes: Attention(dims, classes, dim=8, heads=2), "Attention"),
        (lambda dims, classes: Concat(dims, classes, hidden=7), "Concat"),
        (lambda dims, classes: Sum(dims, classes, hidden=7), "Sum"),
        (lambda dims, classes: Late(dims, classes, hidden=7), "Late"),
    ],
)
def test_heads_that_are_not_linear_are_refused_by_name(fusion: Any, shown: str) -> None:
    with pytest.raises(UserError, match=f"model.mmcosine: the fusion {shown} is not a sum of linear") as caught:
        build(fusion=fusion, extra=[MMCosine()])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scale", [0, -1.0, float("inf"), float("nan")])
def test_scale_is_positive(scale: float) -> None:
    with pytest.raises(UserError, match=f"model.mmcosine.scale={scale}: must be a positive, finite number"):
        MMCosine(scale)


def test_one_modality_is_refused() -> None:
    with pytest.raises(UserError, match="model.mmcosine: needs at least 2 modalities"):
        FusionClassifier({"audio": Linear()}, extra=[MMCosine()])


def test_late_is_linear_without_a_hidden_layer() -> None:
    torch.manual_seed(0)
    late, encodings = Late(DIMS, 3).double(), random(5)
    found = late.modality_weights()
    assert found is not None
    nothing = late({m: 0 * e for m, e in encodings.items()})
    expected = nothing + torch.stack([e @ found[m].T for m, e in encodings.items()]).sum(0)
    torch.testing.assert_close(late(encodings), expected)
    own = late.unimodal_logits(encodings)  # still each classifier's, bias and all
    torch.testing.assert_close(own["a"], late.classifiers["a"](encodings["a"]))
    torch.testing.assert_close(torch.stack([*own.values()]).mean(0), late(encodings))
    assert Late(DIMS, 3, hidden=7).modality_weights() is None


# --------------------------------------------------------------------------------------------------------- in training


class Look(Regularizer):
    """Compares the training pass's logits with the formula."""

    name = "look"

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale, self.count = scale, 0

    def losses(self, step: Step) -> dict[str, Tensor]:
        assert isinstance(step.model.head, CosineHead)
        linear = step.model.head.linear.modality_weights()
        assert linear is not None
        pooled = {m: e.flatten(1, -2).mean(1) if e.ndim > 2 else e for m, e in step.encodings.items()}
        parts = [F.normalize(e.double(), dim=1) @ F.normalize(linear[m].double(), dim=1).T for m, e in pooled.items()]
        tolerance = 2e-2 * self.scale if step.encodings["audio"].dtype == torch.bfloat16 else 1e-4
        assert step.logits.dtype == torch.float32
        torch.testing.assert_close(
            step.logits.double(), self.scale * torch.stack(parts).sum(0), rtol=0, atol=tolerance * 1e-1
        )
        self.count += 1
        return {}


@pytest.mark.parametrize(
    ("fusion", "encoder", "data", "flags"),
    [
        (Concat, Linear, {}, {}),
        (Sum, Tokens, {"lacking": True}, {}),
        (Late, Linear, {"modalities": ("audio", "video", "text")}, {}),
        (Concat, Linear, {"lacking": True}, {"precision": "bf16-mixed"}),
    ],
    ids=["concat", "sum-tokens-lacking", "late-three", "bf16-lacking"],
)
def test_training_and_evaluation_use_the_same_logits(
    fusion: Any, encoder: Any, data: dict[str, Any], flags: dict[str, Any]
) -> None:
    pl.seed_everything(0)
    look, toy = Look(4.0), Toy(**data)
    model = FusionClassifier({name: encoder() for name in toy.inputs}, fusion, 3, extra=[MMCosine(4.0), look])
    start = weights(model)
    trainer = fit(model, toy, **flags)
    assert look.count == 8
    assert all(not torch.equal(value, start[key]) for key, value in weights(model).items())
    assert all(value.isfinite().all() for value in weights(model).values())
    model.eval()
    present = {"video": torch.arange(32) % 4 != 0} if data.get("lacking") else None
    encodings = model.model.encode(toy.inputs, present)
    linear = model.model.head.linear.modality_weights()  # type: ignore[operator, union-attr]
    pooled = {m: e.mean(1) if e.ndim > 2 else e for m, e in encodings.items()}
    logits = cosine_logits(pooled, linear, 4.0)
    torch.testing.assert_close(model(toy.inputs, present), logits)
    loss = F.cross_entropy(logits, toy.label).item()
    assert trainer.callback_metrics["val/loss"].item() == pytest.approx(loss, abs=0.02 if flags else 1e-5)


def test_it_starts_from_naive_fusions_weights() -> None:
    naive, cosine = build(), build(extra=[MMCosine()])
    assert torch.equal(naive.model.head.classifier.weight, cosine.model.get_parameter("head.linear.classifier.weight"))
    for (_, a), (_, b) in zip(
        naive.model.encoders.named_parameters(), cosine.model.encoders.named_parameters(), strict=True
    ):
        assert torch.equal(a, b)


def test_a_modalitys_size_gives_it_no_share() -> None:
    """Ten times the features: naive fusion's logits follow, the cosine's do not."""
    naive, cosine = build(), build(extra=[MMCosine()])
    encodings = naive.model.encode(Toy().inputs)
    louder = {**encodings, "video": 10 * encodings["video"]}
    shares = [attribution_shares(m.model.head, e).mean(0)[1] for m in (naive, cosine) for e in (encodings, louder)]
    assert shares[1] - shares[0] > 0.2
    assert shares[3] == pytest.approx(shares[2].item(), abs=1e-5)


@pytest.mark.filterwarnings("ignore:model.amr.ratio")  # 1 : 4 asks for more than video can tell
@pytest.mark.parametrize("ratio", [{"audio": 1.0, "video": 1.0}, {"audio": 1.0, "video": 4.0}])
def test_with_amr_it_reaches_the_ratio(ratio: dict[str, float]) -> None:
    data = Toy(clips=96, batch_size=12)
    model = build(extra=[MMCosine()], amr=AMR(ratio, lr=0.2))
    trainer = fit(model, data, max_epochs=15)
    share = attribution_shares(model.model.head, model.model.encode(data.inputs)).mean(0)
    assert share[0].item() == pytest.approx(ratio["audio"] / sum(ratio.values()), abs=0.03)
    assert trainer.callback_metrics["val/acc"] > 0.6


def test_accumulated_micro_batches_equal_one_batch() -> None:
    big, small = build(extra=[MMCosine()]), build(extra=[MMCosine()])
    fit(big, Toy(batch_size=16, lacking=True))
    fit(small, Toy(batch_size=8, lacking=True), accumulate_grad_batches=2)
    assert_equal(weights(big), weights(small), atol=1e-6)


def test_no_nan_from_dead_encoders_and_lone_rows() -> None:
    model = build(extra=[MMCosine()], amr=AMR())
    for parameter in model.model.encoders["video"].parameters():
        nn.init.zeros_(parameter)
    fit(model, Toy(clips=8, batch_size=1, lacking=True))
    assert all(value.isfinite().all() for value in weights(model).values())


def test_resuming_equals_going_on(tmp_path: Path) -> None:
    def checkpoint() -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)

    flags: dict[str, Any] = {"max_epochs": 3, "enable_checkpointing": True}
    whole, resumed = build(extra=[MMCosine()], amr=AMR()), build(seed=1, extra=[MMCosine()], amr=AMR())
    fit(whole, callbacks=[checkpoint()], **flags)
    fit(resumed, ckpt=tmp_path / "epoch=0.ckpt", callbacks=[checkpoint()], **flags)
    assert_equal(weights(whole), weights(resumed))
    with pytest.raises(UserError, match="another architecture"):
        fit(build(), ckpt=tmp_path / "epoch=0.ckpt")


# --------------------------------------------------------------------------------------------------------------- DDP

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "sum-lacking": {"fusion": Sum, "lacking": True},
    "late-amr": {"fusion": Late, "amr": True},
}


def train(world: int, case: str) -> dict[str, Tensor]:
    options = CASES[case]
    model = build(
        fusion=options.get("fusion", Concat), extra=[MMCosine()], amr=AMR(momentum=0.5) if options.get("amr") else None
    )
    fit_on(world, model, Toy(batch_size=16, lacking=options.get("lacking", False)))
    return weights(model)


@pytest.fixture(scope="module")
def ddp() -> dict[str, Any]:
    """Final weights of each case, by one process and by each of two gloo ranks."""
    return on_one_and_two_ranks(train, CASES)


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_equal_one_process_on_the_joined_batch(ddp: dict[str, Any], case: str) -> None:
    assert_ranks_equal(ddp[case], atol=1e-6)
