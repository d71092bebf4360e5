"""Greedy: gates, speeds, and which gate is held for how long."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from amr.fusion import Attention, Concat, Gated
from amr.regularizers import Greedy
from amr.regularizers.features.greedy import GatedHead, conditional_speeds, fastest
from tests.regularizers.recorded import steps
from tests.toy import Toy
from tests.training import build


def gates_by_hand(head: GatedHead, encodings: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    pooled = torch.cat([e if e.ndim == 2 else e.mean(1) for e in encodings.values()], 1)
    z = F.linear(pooled, head.squeeze.weight, head.squeeze.bias).clamp_min(0)
    return {m: 1 / (1 + torch.exp(-layer(z))) for m, layer in head.excite.items()}


@pytest.mark.parametrize("fusion", [Concat, Gated, lambda d, c: Attention(d, c, dim=8, heads=2)])
def test_gates_scale_encodings_before_any_fusion(fusion: Any) -> None:
    model = build(fusion=fusion, greedy=Greedy())
    head = model.model.head.eval()
    assert isinstance(head, GatedHead)
    assert head.squeeze.out_features == 8  # 2 (8 + 8) / 4
    encodings = {"audio": torch.randn(5, 8), "video": torch.randn(5, 3, 8)}
    gates = gates_by_hand(head, encodings)
    gates["video"] = gates["video"][:, None]
    expected = head.inner({m: e * gates[m] for m, e in encodings.items()})
    torch.testing.assert_close(head(encodings), expected)
    head.held.fill_(0)
    torch.testing.assert_close(head(encodings), expected)  # evaluation never holds a gate


def test_speeds_and_the_leader() -> None:
    d = conditional_speeds(torch.tensor([1.0, 0.1]), torch.tensor([0.01, 0.1]))
    assert d.tolist() == pytest.approx([2.0, 0.0])
    assert fastest(d, 1.99) == 0
    assert fastest(d, 2.01) is None
    assert fastest(torch.tensor([0.0, 3.0, 2.0]), 1.9) == 1
    assert fastest(torch.tensor([float("inf"), 0.0]), 0.1) is None


def test_a_run_against_a_second_derivation() -> None:
    """Gates, sums, what is held and all gradients over twelve steps that do not move the weights."""
    model = build(greedy=Greedy(threshold=0.001, steps=3, start_epoch=1))
    batches = [Toy().collate([*range(first, first + 8)]) for first in (0, 8, 16, 24)]
    recorded = steps(model, *batches, epochs=3)
    head, method = model.model.head, model.regularizers.methods["greedy"]
    assert isinstance(head, GatedHead)
    assert isinstance(method, Greedy)
    parameters, names = dict(model.model.named_parameters()), ("audio", "video")
    sums, seen = torch.zeros(2, 2, dtype=torch.float64), dict.fromkeys(names, torch.zeros(8))
    history: list[str | None] = []
    held, left = None, 0
    for number, gradients in enumerate(recorded):
        batch = batches[number % 4]
        encodings = {m: model.model.encoders[m](batch["inputs"][m]) for m in names}
        gates = gates_by_hand(head, encodings)
        for m in names:
            seen[m] = seen[m] + gates[m].mean(0).detach()
        if held is not None:
            before = seen[held] - gates[held].mean(0).detach()
            gates = {**gates, held: (before / number).expand(8, 8)}
        loss = F.cross_entropy(head.inner({m: e * gates[m] for m, e in encodings.items()}), batch["label"])
        pieces = torch.autograd.grad(loss, [*parameters.values()], allow_unused=True)
        for (key, parameter), piece in zip(parameters.items(), pieces, strict=True):
            expected = torch.zeros_like(parameter) if piece is None else piece
            torch.testing.assert_close(gradients[key], expected, rtol=1e-4, atol=1e-7, msg=f"{number} {key}")
        history.append(held)
        if held is not None:
            left -= 1
            held = held if left else None
            continue
        for i, m in enumerate(names):
            gate = [k for k in parameters if k.startswith(("head.squeeze", f"head.excite.{m}"))]
            own = [k for k in parameters if k.startswith(f"encoders.{m}")]
            for j, keys in enumerate((gate, own)):
                g = sum(float(gradients[k].square().sum()) for k in keys)
                sums[j, i] += g / sum(float(parameters[k].detach().square().sum()) for k in keys)
        d = torch.log10(sums[0] / sums[1])
        if number >= 4 and abs(float(d[0] - d[1])) > 0.001:
            held, left = names[int(d.argmax())], 3
    torch.testing.assert_close(method.speeds.double(), sums, rtol=1e-4, atol=0)
    assert history[:5] == [None] * 5
    assert sum(h is not None for h in history) == 6  # three held, one free, three held, while the weights stay
    for m in names:
        torch.testing.assert_close(head.get_buffer(f"mean_{m}"), seen[m] / 12)
    head.train().held.fill_(1)
    other = build(seed=9, greedy=Greedy())
    other.load_state_dict(model.state_dict())  # what a run that is resumed while a gate is held goes on with
    encodings = {m: torch.randn(5, 8) for m in names}
    assert torch.equal(other.model.head.train()(encodings), head(encodings))
    assert not torch.equal(head(encodings), head.eval()(encodings))
