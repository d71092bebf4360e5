"""InfoReg: growth, strength, and the gradient that they leave."""

import math
from collections.abc import Sequence

import pytest
import torch

from amr.regularizers import InfoReg, MultiLoss, Step
from amr.regularizers.gradients.info_reg import hold_strengths, information_growth
from tests.regularizers.recorded import steps
from tests.toy import Toy
from tests.training import assert_equal, build, fit, weights

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(LeafSpec|num_workers|logging interval|tensorboardX|exists and is not empty|Average precision)"
)


def test_growth_by_hand() -> None:
    traces = torch.full((11, 2), -1.0)
    assert information_growth(traces).isnan().all()
    traces[-1] = 5.0
    assert information_growth(traces).isnan().all()  # one epoch tells nothing
    traces[-2:] = torch.tensor([[2.0, 4.0], [4.0, 2.0]])
    # t1 = mean(2, 4) = 3 and t2 = 2; mirrored: t1 = 3, t2 = 4
    torch.testing.assert_close(information_growth(traces), torch.tensor([(3 - 2) / 3, (3 - 4) / 3]))
    full = torch.arange(11.0).unsqueeze(1)
    assert information_growth(full).item() == pytest.approx((5.5 - 4.5) / 5.5)


def test_strengths_by_hand() -> None:
    recorded = hold_strengths(torch.tensor([0.7, 0.3]), torch.tensor([0.95, 0.1]))
    assert recorded.tolist() == pytest.approx([0.95 * math.exp(math.tanh(0.4)), 0.0])
    three = hold_strengths(torch.tensor([0.5, 0.4, 0.0]), torch.ones(3))
    assert three.tolist() == pytest.approx([math.exp(math.tanh(0.3)), math.exp(math.tanh(0.15)), 0.0])
    assert hold_strengths(torch.tensor([0.5, 0.5]), torch.ones(2)).tolist() == [0.0, 0.0]


def gradient_of(encoder: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None])


def test_the_leading_encoder_is_pulled_back_to_the_epochs_start() -> None:
    """From the third epoch on the gradient has the strength times θ − θ₀ added, for the modality that leads."""
    batches = [Toy().collate([*range(0, 16)]), Toy().collate([*range(16, 32)])]
    kept: list[dict[str, torch.Tensor]] = []

    class Watched(InfoReg):
        def on_gradients(self, given: Sequence[Step]) -> None:
            model = given[0].model
            note: dict[str, torch.Tensor] = {"right": self._right(given[0]).mean(0).detach()}
            for name, encoder in model.encoders.items():
                note[f"plain.{name}"] = gradient_of(encoder)
                note[f"theta.{name}"] = torch.cat([p.detach().flatten() for p in encoder.parameters()])
                note[f"start.{name}"] = self.get_buffer(f"start_{name}").clone()
            super().on_gradients(given)
            for name, encoder in model.encoders.items():
                note[f"held.{name}"] = gradient_of(encoder)
            kept.append(note)

    model = build(extra=[Watched(beta={"audio": 0.5, "video": 2.0}, threshold=-10.0)])
    steps(model, *batches, epochs=3, lr=0.1)
    for i, step in enumerate(kept):
        lead = step["right"][0] - step["right"][1]
        for n, sign, beta in (("audio", 1, 0.5), ("video", -1, 2.0)):
            factor = beta * math.exp(math.tanh(abs(lead))) if sign * lead > 0 and i // 2 >= 2 else 0.0
            expected = step[f"plain.{n}"] + factor * (step[f"theta.{n}"] - step[f"start.{n}"])
            torch.testing.assert_close(step[f"held.{n}"], expected)
    assert (kept[5]["theta.audio"] - kept[5]["start.audio"]).abs().max() > 0  # the second step of an epoch has moved
    assert torch.equal(kept[4]["theta.audio"], kept[4]["start.audio"])


def test_without_growth_it_is_multi_loss() -> None:
    a, b = build(info_reg=InfoReg(threshold=2.0)), build(multi_loss=MultiLoss(1.0))
    fit(a, max_epochs=4)
    fit(b, max_epochs=4)
    assert_equal(weights(a), weights(b))
