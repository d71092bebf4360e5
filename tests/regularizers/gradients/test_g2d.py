"""G2D: the loss of its teachers, and whose convolutions wait."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from amr.regularizers import G2D
from amr.regularizers.gradients.g2d import suppressed
from amr.utils.errors import UserError
from amr.utils.trust import trusting
from tests.regularizers.probes import Convolution, plain
from tests.regularizers.recorded import steps
from tests.toy import Toy
from tests.training import assert_equal, build, fit, save_teachers, weights

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(LeafSpec|num_workers|logging interval|tensorboardX|exists and is not empty|Average precision|ckpt_path)"
)
NAMES = ("audio", "video")


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with trusting(["tests"]):
        yield save_teachers(tmp_path_factory.mktemp("teachers"), (*NAMES, "touch"), Convolution)


def pair(taught: dict[str, str]) -> dict[str, str]:
    return {name: taught[name] for name in NAMES}


def test_the_most_certain_is_suppressed() -> None:
    assert suppressed(torch.tensor([1.0, 3.0, 2.0])).tolist() == [1.0, 0.0, 1.0]
    assert suppressed(torch.tensor([0.0, 0.0])).sum() == 1.0  # of equals, one waits


@pytest.mark.parametrize("modalities", [NAMES, (*NAMES, "touch")], ids=len)
@pytest.mark.parametrize("which", ["conv", "all"])
def test_gradients_are_of_the_written_out_loss(which: Any, modalities: tuple[str, ...], taught: dict[str, str]) -> None:
    """CE + w_p Σ_m KL(teacher ‖ student) + w_f Σ_m MSE by autograd, then the zeros of the waiting encoder."""
    given = {name: taught[name] for name in modalities}
    method = G2D(given, features_weight=0.7, predictions_weight=0.4, end_epoch=None, parameters=which)
    model = build(encoder=plain, modalities=modalities, g2d=method)
    batch = Toy(modalities=modalities, lacking=True).collate([*range(8)])
    has = {name: batch["present"].get(name, torch.ones(8, dtype=torch.bool)) for name in modalities}
    encodings = model.model.encode(batch["inputs"], batch["present"])
    logits = model.model.head(encodings)
    loss = nn.functional.cross_entropy(logits, batch["label"])
    q = logits.softmax(1)
    divergence, sure = torch.zeros(8), {}
    for name, path in given.items():
        teacher = build(encoder=Convolution, modalities=[name])
        state = torch.load(path, weights_only=True)["state_dict"]
        teacher.load_state_dict(state)
        teacher.eval()
        target = teacher.model.encode({name: batch["inputs"][name]})[name].detach() * has[name].unsqueeze(1)
        p = teacher.model.head({name: target}).softmax(1).detach()
        loss = loss + 0.7 * ((encodings[name] - target) ** 2).mean()
        divergence = divergence + has[name] * (p * (p / q).log()).sum(1)
        sure[name] = p[range(8), batch["label"]][has["video"]].sum()
    loss = loss + 0.4 * divergence.mean()
    parameters = dict(model.model.named_parameters())
    expected = dict(zip(parameters, torch.autograd.grad(loss, [*parameters.values()]), strict=True))
    waits = max(sure, key=lambda name: float(sure[name]))
    (gradients,) = steps(model, batch)
    for key, piece in expected.items():
        zeroed = key.startswith(f"encoders.{waits}.") and (which == "all" or key.endswith("conv.weight"))
        wanted = torch.zeros_like(piece) if zeroed else piece
        torch.testing.assert_close(gradients[key], wanted, rtol=1e-4, atol=1e-6, msg=key)


def test_out_of_its_epochs_nobody_waits(taught: dict[str, str]) -> None:
    """The second epoch's gradients have no zeros; the report says who waited in the first."""
    method = G2D(pair(taught), end_epoch=1)
    recorded = steps(build(encoder=plain, g2d=method), Toy().collate([*range(8)]), epochs=2)
    waited = [[not gradients[f"encoders.{name}.conv.weight"].any() for name in NAMES] for gradients in recorded]
    assert [sum(epoch) for epoch in waited] == [1, 0]
    assert method.report() == {"k/audio": 1.0, "k/video": 1.0}


def test_micro_batches_are_summed(taught: dict[str, str]) -> None:
    """Two halves accumulated end where the whole batch does."""
    whole, halves = (build(encoder=plain, g2d=G2D(pair(taught))) for _ in range(2))
    fit(whole, Toy(batch_size=8), max_epochs=1)
    fit(halves, Toy(batch_size=4), max_epochs=1, accumulate_grad_batches=2)
    assert_equal(weights(halves), weights(whole), atol=1e-5)


def test_what_does_not_fit_is_named(taught: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"model\.g2d\.teachers.*'audio'.*must be exactly.*'audio', 'video'"):
        build(encoder=plain, g2d=G2D({"audio": taught["audio"]}))
    with pytest.raises(UserError, match=r"model\.g2d\.teachers\.audio=nope\.ckpt does not exist"):
        build(encoder=plain, g2d=G2D({"audio": "nope.ckpt", "video": taught["video"]}))
    with pytest.raises(UserError, match=r"model\.g2d\.parameters=conv: the encoder of 'audio' has no convolution"):
        build(g2d=G2D(pair(taught)))
