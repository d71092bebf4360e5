"""What every fusion promises, and each against an independent formula."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amr.fusion import Attention, Concat, FiLM, Fusion, Gated, Late, LowRank, MulT, Shared, Sum
from amr.fusion.base import pool_tokens
from amr.utils.errors import UserError

SIZES = {"a": 6, "b": 4, "c": 8, "d": 5}
CLASSES = 3
FUSIONS: dict[str, Callable[..., Fusion]] = {
    "concat": Concat,
    "sum": Sum,
    "film": FiLM,
    "gated": Gated,
    "low_rank": LowRank,
    "attention": lambda dims, classes, **kw: Attention(dims, classes, dim=8, heads=2, layers=2, **kw),
    "mult": lambda dims, classes, **kw: MulT(dims, classes, dim=4, heads=2, layers=1, **kw),
    "late": Late,
    "shared": Shared,
}
every_fusion = pytest.mark.parametrize("name", FUSIONS)
every_count = pytest.mark.parametrize("modalities", [1, 2, 3, 4])
every_hidden = pytest.mark.parametrize("hidden", [None, 7])


def make(name: str, modalities: int = 2, hidden: int | None = None, seed: int = 0) -> Fusion:
    torch.manual_seed(seed)
    dims = dict(itertools.islice(SIZES.items(), modalities))
    if name == "shared":
        dims = dict.fromkeys(dims, 6)
    return FUSIONS[name](dims, CLASSES, hidden=hidden).eval()


def encode(head: Fusion, rows: int = 5, tokens: int | None = None, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (rows,) if tokens is None else (rows, tokens)
    dtype = next(head.parameters()).dtype
    return {m: torch.randn(*shape, size, generator=generator, dtype=dtype) for m, size in head.dims.items()}


def shares(head: Fusion, encodings: Mapping[str, Tensor]) -> Tensor:
    """Attribution shares (B, M), written here anew; rows where every hidden unit is off are left out."""
    leaves = {m: e.detach().requires_grad_() for m, e in encodings.items()}
    score = head(leaves).amax(dim=1).sum()
    gradients = torch.autograd.grad(score, list(leaves.values()), create_graph=True)
    norms = [(g * e).flatten(1).norm(dim=1) for g, e in zip(gradients, leaves.values(), strict=True)]
    stacked = torch.stack(norms, dim=1)
    stacked = stacked[stacked.detach().sum(dim=1) > 0]
    return stacked / stacked.sum(dim=1, keepdim=True)


@every_fusion
@every_count
@every_hidden
def test_shapes_and_parts(name: str, modalities: int, hidden: int | None) -> None:
    head = make(name, modalities, hidden)
    for tokens in (None, 3):
        encodings = encode(head, tokens=tokens)
        fused = head.fuse(encodings)
        logits = head(encodings)
        assert logits.shape == (5, CLASSES)
        assert fused.ndim == 2
        assert torch.equal(head.classify(fused), logits)
        if hidden is not None:
            assert fused.shape[1] == hidden * (modalities if name in ("late", "shared") else 1)


@every_fusion
@every_count
@every_hidden
def test_every_parameter_learns(name: str, modalities: int, hidden: int | None) -> None:
    head = make(name, modalities, hidden).train()
    loss = F.cross_entropy(head(encode(head)), torch.tensor([0, 1, 2, 0, 1]))
    names, parameters = zip(*head.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, parameters)  # raises if the loss does not depend on one
    dead = [key for key, gradient in zip(names, gradients, strict=True) if not gradient.any()]
    assert dead == []


@every_fusion
@every_count
@every_hidden
def test_rows_are_independent(name: str, modalities: int, hidden: int | None) -> None:
    head = make(name, modalities, hidden).double()
    encodings = encode(head)
    rows = [head({m: e[i : i + 1] for m, e in encodings.items()}) for i in range(5)]
    torch.testing.assert_close(torch.cat(rows), head(encodings), rtol=1e-12, atol=1e-12)


@every_fusion
@pytest.mark.parametrize("tokens", [None, 3])
def test_a_batch_may_be_empty(name: str, tokens: int | None) -> None:
    """As AMR's is when no clip of a batch has all modalities."""
    head = make(name, 2)
    assert head(encode(head, rows=0, tokens=tokens)).shape == (0, CLASSES)


@every_fusion
def test_order_of_encodings_does_not_matter(name: str) -> None:
    head = make(name, 4)
    encodings = encode(head)
    assert torch.equal(head(dict(reversed(encodings.items()))), head(encodings))


@every_fusion
@every_hidden
def test_one_token_is_no_sequence(name: str, hidden: int | None) -> None:
    head = make(name, 3, hidden)
    encodings = encode(head)
    torch.testing.assert_close(head({m: e[:, None] for m, e in encodings.items()}), head(encodings))


@every_fusion
@every_count
@every_hidden
def test_zero_encodings_give_finite_numbers(name: str, modalities: int, hidden: int | None) -> None:
    head = make(name, modalities, hidden)
    for zeroed in (set(head.dims), {"a"}):
        encodings = {m: e * (m not in zeroed) for m, e in encode(head).items()}
        leaves = {m: e.requires_grad_() for m, e in encodings.items()}
        logits = head(leaves)
        gradients = torch.autograd.grad(logits.logsumexp(1).sum(), list(leaves.values()), create_graph=True)
        attribution = sum(((g * e) ** 2).sum() for g, e in zip(gradients, leaves.values(), strict=True))
        assert isinstance(attribution, Tensor)
        second = torch.autograd.grad(attribution, list(head.parameters()), allow_unused=True)
        assert logits.isfinite().all()
        assert all(g.isfinite().all() for g in (*gradients, *second) if g is not None)


@every_fusion
@every_hidden
@pytest.mark.parametrize("modalities", [2, 3, 4])
@pytest.mark.parametrize("tokens", [None, 3])
def test_penalty_on_shares_reaches_the_head(name: str, hidden: int | None, modalities: int, tokens: int | None) -> None:
    head = make(name, modalities, hidden)
    share = shares(head, encode(head, rows=16, tokens=tokens))[:, 0].mean()
    parameters = dict(head.named_parameters())
    gradients = dict(
        zip(parameters, torch.autograd.grad(share, list(parameters.values()), allow_unused=True), strict=True)
    )
    reached = [key for key, g in gradients.items() if g is not None and g.any()]
    assert all(g.isfinite().all() for g in gradients.values() if g is not None)
    assert [key for key in parameters if key.endswith("weight") and key not in reached] == []


@every_fusion
def test_share_gradient_matches_finite_differences(name: str) -> None:
    head = make(name, 2 if name == "mult" else 3).double()  # which has many parameters
    encodings = encode(head, rows=6)
    for parameter in head.parameters():
        (analytic,) = torch.autograd.grad(shares(head, encodings)[:, 0].mean(), parameter, allow_unused=True)
        direction = torch.randn_like(parameter)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(direction, alpha=sign * 1e-6)
            values.append(shares(head, encodings)[:, 0].mean().item())
            with torch.no_grad():
                parameter.sub_(direction, alpha=sign * 1e-6)
        expected = (values[0] - values[1]) / 2e-6
        actual = 0.0 if analytic is None else (analytic * direction).sum().item()
        assert actual == pytest.approx(expected, abs=2e-7, rel=1e-4)


@every_fusion
def test_gradgradcheck(name: str) -> None:
    torch.manual_seed(0)
    dims = dict.fromkeys("ab" if name == "mult" else "abc", 2)
    small: dict[str, Any] = {"attention": Attention, "mult": MulT}
    head = small[name](dims, 2, dim=2, heads=1, layers=1) if name in small else FUSIONS[name](dims, 2)
    head = head.double()
    names = [key for key, _ in head.named_parameters()]

    def logits(*tensors: Tensor) -> Tensor:
        encodings = dict(zip(dims, tensors[: len(dims)], strict=True))
        parameters = dict(zip(names, tensors[len(dims) :], strict=True))
        return torch.func.functional_call(head, parameters, (encodings,))  # type: ignore[no-any-return]

    inputs = [torch.randn(2, 2, dtype=torch.double, requires_grad=True) for _ in dims]
    inputs += [p.detach().clone().requires_grad_() for p in head.parameters()]
    assert torch.autograd.gradgradcheck(logits, inputs, fast_mode=True)


def test_pool_tokens() -> None:
    x = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(pool_tokens(x), x.reshape(2, 12, 5).mean(1))
    assert pool_tokens(x[:, 0, 0]).shape == (2, 5)


# Each fusion against its formula.


def test_concat_is_a_sum_of_linear_maps() -> None:
    head = make("concat", 3)
    encodings = encode(head)
    blocks = torch.split(head.classifier.weight, [*head.dims.values()], dim=1)
    expected = head.classifier.bias + sum(e @ w.T for e, w in zip(encodings.values(), blocks, strict=True))
    torch.testing.assert_close(head(encodings), expected)


def test_sum_by_hand() -> None:
    head = make("sum", 3)
    encodings = encode(head)
    projections = {m: head.get_parameter(f"projections.{m}.weight") for m in head.dims}
    expected = sum((encodings[m] @ w.T for m, w in projections.items()), torch.zeros(()))
    torch.testing.assert_close(head.fuse(encodings), expected)
    assert expected.shape[1] == 8  # the largest encoding's size
    torch.manual_seed(0)
    assert Sum(SIZES, CLASSES, dim=11).fuse({m: torch.randn(2, d) for m, d in SIZES.items()}).shape == (2, 11)


@pytest.mark.parametrize("conditioner", [None, "a", "b", "c"])
def test_film_by_hand(conditioner: str | None) -> None:
    torch.manual_seed(0)
    dims = {m: SIZES[m] for m in "abc"}
    head = FiLM(dims, CLASSES, conditioner=conditioner)
    encodings = encode(head)
    weight, bias = head.get_parameter("film.weight"), head.get_parameter("film.bias")
    c = conditioner or "a"
    others = [m for m in dims if m != c]
    modulation = encodings[c] @ weight.T + bias
    total, start, expected = sum(dims[m] for m in others), 0, []
    for m in others:
        gamma = 1 + modulation[:, start : start + dims[m]]
        beta = modulation[:, total + start : total + start + dims[m]]
        expected.append(gamma * encodings[m] + beta)
        start += dims[m]
    torch.testing.assert_close(head.fuse(encodings), torch.cat(expected, 1))


def test_film_with_one_modality_passes_it_on() -> None:
    head = make("film", 1)
    encodings = encode(head)
    assert torch.equal(head.fuse(encodings), encodings["a"])


@every_count
def test_gated_by_hand(modalities: int) -> None:
    head = make("gated", modalities)
    assert isinstance(head, Gated)
    encodings = encode(head)
    joint = torch.cat(list(encodings.values()), dim=1)
    h = [torch.tanh(encodings[m] @ head.get_parameter(f"projections.{m}.weight").T) for m in head.dims]
    z = list(torch.split(torch.sigmoid(joint @ head.gate.weight.T), h[0].shape[1], dim=1))
    if modalities == 2:  # the bimodal unit: z ⊙ h_1 + (1 - z) ⊙ h_2
        assert len(z) == 1
        expected = z[0] * h[0] + (1 - z[0]) * h[1]
        z.append(1 - z[0])
    else:
        expected = sum((gate * feature for gate, feature in zip(z, h, strict=True)), torch.zeros(()))
    torch.testing.assert_close(head.fuse(encodings), expected)
    torch.testing.assert_close(head.gates(encodings), torch.stack(z, dim=1))


@pytest.mark.parametrize("modalities", [2, 3, 6, 8])
@pytest.mark.parametrize("rank", [1, 4])
def test_low_rank_starts_at_order_one(modalities: int, rank: int) -> None:
    """An absent factor is 1, or -1 for the first modality in every second term, and h neither vanishes nor explodes."""
    torch.manual_seed(0)
    head = LowRank({f"m{i}": 16 for i in range(modalities)}, CLASSES, rank=rank, dim=32)
    absent = [factor(torch.zeros(1, 16)).reshape(rank, 32) for factor in head.factors.values()]
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0])[:rank, None].expand(rank, 32)
    assert torch.equal(absent[0], signs)
    assert all(torch.equal(factor, torch.ones(rank, 32)) for factor in absent[1:])
    h = head.fuse({name: torch.randn(64, 16) for name in head.dims})
    assert 0.4 < float(h.detach().std()) < 6


def test_low_rank_equals_the_outer_product() -> None:
    torch.manual_seed(0)
    dims = {m: SIZES[m] for m in "abc"}
    head = LowRank(dims, CLASSES, rank=3, dim=2).double()
    encodings = encode(head)
    z = [torch.cat([encodings[m], torch.ones(5, 1, dtype=torch.double)], dim=1) for m in dims]
    outer = torch.einsum("bi,bj,bk->bijk", *z)
    factors = []  # (rank, dim, D_m + 1)
    for m in dims:
        weight, bias = head.get_parameter(f"factors.{m}.weight"), head.get_parameter(f"factors.{m}.bias")
        factors.append(torch.cat([weight, bias[:, None]], dim=1).reshape(3, 2, -1))
    tensor = torch.einsum("rhi,rhj,rhk->hijk", *factors)
    torch.testing.assert_close(head.fuse(encodings), torch.einsum("bijk,hijk->bh", outer, tensor))


@pytest.mark.parametrize("tokens", [None, 3])
def test_attention_equals_torch_transformer(tokens: int | None) -> None:
    torch.manual_seed(0)
    dims = {m: SIZES[m] for m in "abc"}
    head = Attention(dims, CLASSES, dim=8, heads=2, layers=2).double()
    encodings = encode(head, tokens=tokens)
    sequence = [head.class_token.expand(5, 1, 8)]
    for i, m in enumerate(dims):
        projected = encodings[m] @ head.get_parameter(f"projections.{m}.weight").T + head.modality_embeddings[i]
        sequence.append(projected if tokens else projected[:, None])
    x = torch.cat(sequence, dim=1)
    for i in range(2):
        layer = nn.TransformerEncoderLayer(8, 2, 32, 0.0, "gelu", batch_first=True, norm_first=True).double()
        renamed = {
            "attention.qkv.weight": "self_attn.in_proj_weight",
            "attention.qkv.bias": "self_attn.in_proj_bias",
            "attention.out.weight": "self_attn.out_proj.weight",
            "attention.out.bias": "self_attn.out_proj.bias",
            "feed_forward.0.weight": "linear1.weight",
            "feed_forward.0.bias": "linear1.bias",
            "feed_forward.2.weight": "linear2.weight",
            "feed_forward.2.bias": "linear2.bias",
        }
        state = head.layers[i].state_dict()
        layer.load_state_dict({renamed.get(key, key): value for key, value in state.items()})
        x = layer(x)
    torch.testing.assert_close(head.fuse(encodings), head.norm(x)[:, 0])


def test_attention_reads_every_token() -> None:
    head = make("attention")
    encodings = encode(head, tokens=3)
    changed = encodings | {"b": torch.cat([encodings["b"][:, :2], -encodings["b"][:, 2:]], dim=1)}
    assert not torch.allclose(head(changed), head(encodings))


@every_hidden
def test_late_is_the_mean_of_unimodal_heads(hidden: int | None) -> None:
    head = make("late", 3, hidden)
    assert isinstance(head, Late)
    encodings = encode(head)
    logits = []
    for m, e in encodings.items():
        alone = Late({m: SIZES[m]}, CLASSES, hidden=hidden)
        alone.load_state_dict({key: value for key, value in head.state_dict().items() if f".{m}." in key})
        logits.append(alone({m: e}))
        torch.testing.assert_close(head.unimodal_logits(encodings)[m], logits[-1])
    torch.testing.assert_close(head(encodings), sum(logits, torch.zeros(())) / 3)


@every_hidden
def test_shared_adds_what_one_head_says_of_each(hidden: int | None) -> None:
    head = make("shared", 3, hidden)
    alone = Concat({"a": 6}, CLASSES, hidden=hidden)
    alone.load_state_dict(head.state_dict())  # the very same parameters, whatever the number of modalities
    encodings = encode(head)
    logits = {m: alone({"a": e}) for m, e in encodings.items()}
    torch.testing.assert_close(head(encodings), sum(logits.values(), torch.zeros(())))
    torch.testing.assert_close(head.unimodal_logits(encodings), logits)


@pytest.mark.parametrize("name", ["concat", "sum", "late", "shared"])
@every_hidden
def test_parts_of_an_additive_head_sum_to_its_logits(name: str, hidden: int | None) -> None:
    """Each part depends on its modality alone, and only heads without such parts give None."""
    head = make(name, 3, hidden)
    encodings = encode(head)
    parts = head.additive_logits(encodings)
    assert (parts is None) == (hidden is not None and name in ("concat", "sum"))
    if parts is None:
        return
    torch.testing.assert_close(head(encodings), sum(parts.values(), torch.zeros(())))
    changed = head.additive_logits({m: e if m == "a" else -e for m, e in encodings.items()})
    assert changed is not None
    torch.testing.assert_close(changed["a"], parts["a"])
    assert not torch.allclose(changed["b"], parts["b"])


@every_fusion
def test_the_classifier_starts_as_asked(name: str) -> None:
    """OGM-GE's weight_init: variance 2 / (inputs + classes), and no bias. Without the option all stays as it was."""
    dims, classes = ({"a": 500, "b": 500} if name == "shared" else {"a": 400, "b": 600}), 30
    torch.manual_seed(0)
    head = FUSIONS[name](dims, classes, classifier_init="xavier_normal")
    layers = [*head.classifiers.values()] if isinstance(head, Late) else [head.classifier]
    for layer in layers:
        assert isinstance(layer, nn.Linear)
        assert not layer.bias.any()
        size = layer.in_features
        assert float(layer.weight.detach().std()) == pytest.approx((2 / (size + classes)) ** 0.5, rel=0.1)
        assert layer.weight.abs().max() > 2.5 * layer.weight.std()  # normal; torch's are uniform
    torch.manual_seed(0)
    plain = FUSIONS[name](dims, classes)
    torch.manual_seed(0)
    default = FUSIONS[name](dims, classes, classifier_init="torch")
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), default.parameters(), strict=True))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: Concat(SIZES, 3, classifier_init="zeros"),  # type: ignore[arg-type]
            r"classifier_init='zeros': must be one of torch, xavier_normal",
        ),
        (lambda: FiLM(SIZES, 3, conditioner="x"), r"conditioner='x': must be one of a, b, c, d"),
        (lambda: Attention({"a": 6}, 3), r"heads=4: must divide dim=6, so be one of 1, 2, 3, 6"),
        (lambda: Attention(SIZES, 3, layers=0), r"layers=0: must be at least 1"),
        (lambda: LowRank(SIZES, 3, rank=0), r"rank=0: must be at least 1"),
        (lambda: Sum(SIZES, 3, dim=-1), r"dim=-1: must be at least 1"),
        (lambda: Gated(SIZES, 3, dim=0), r"dim=0: must be at least 1"),
        (lambda: Concat(SIZES, 3, hidden=0), r"hidden=0: must be at least 1"),
        (
            lambda: Shared({"a": 6, "b": 4}, 3),
            r"model\.fusion=Shared: the encodings must be of one size; they are of a 6, b 4",
        ),
        (lambda: Late(SIZES, 0), r"num_classes=0: must be at least 1"),
        *((lambda f=f: f({}, 3), r"at least one modality") for f in (Concat, Sum, FiLM, Gated, LowRank, Late, Shared)),
    ],
)
def test_mistakes(build: Callable[[], Fusion], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build()
    assert "\n" not in str(error.value)
