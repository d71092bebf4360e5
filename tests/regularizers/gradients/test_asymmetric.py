"""ARL and PDMP, which favour the better modality: their weights, and the gradients that they leave."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from amr.fusion import Gated
from amr.regularizers import ARL, PDMP
from amr.regularizers.gradients.arl import asymmetric_weights
from amr.utils.errors import UserError
from tests.regularizers.recorded import one_step
from tests.toy import Toy
from tests.training import build


@pytest.mark.parametrize(("entropy", "magnitude"), [((0.5, 1.5), (9.0, 3.0)), ((0.1, 1.7), (1.0, 1.0))])
def test_weights_of_two_by_numpy(entropy: tuple[float, float], magnitude: tuple[float, float]) -> None:
    """The inverse of the share of entropy, at least 0.3, times the other's share of the logits, and a softmax."""
    h, d = np.array(entropy) / sum(entropy), np.array(magnitude) / sum(magnitude)
    u = 1 / np.maximum(h, 0.3)
    x = np.exp(8 * d[::-1] * u / u.sum())
    given = asymmetric_weights(torch.tensor(entropy), torch.tensor(magnitude), 8.0)
    np.testing.assert_allclose(given.numpy(), x / x.sum(), rtol=1e-5)


def test_weights_of_any_number() -> None:
    three = asymmetric_weights(torch.tensor([0.2, 1.0, 1.0]), torch.tensor([1.0, 1.0, 4.0]), 5.0)
    assert three.sum().item() == pytest.approx(1)
    assert three[0] > three[1] > three[2]  # certain; as uncertain but less in use
    assert asymmetric_weights(torch.zeros(3), torch.zeros(3), 5.0).tolist() == pytest.approx([1 / 3] * 3)
    assert asymmetric_weights(torch.tensor([0.1, 2.0]), torch.tensor([1.0, 5.0]), 0.0).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("fusion", [None, Gated])
def test_arl_s_gradients_are_of_the_written_out_loss_times_the_weights(fusion: type[nn.Module] | None) -> None:
    options = {} if fusion is None else {"fusion": fusion}
    model = build(arl=ARL(gamma=0.7, start_epoch=0), **options)  # type: ignore[arg-type]
    batch = Toy(lacking=True).collate([*range(8)])
    has = {"audio": torch.ones(8, dtype=torch.bool), **batch["present"]}
    encodings, head = model.model.encode(batch["inputs"], batch["present"]), model.model.head
    loss = F.cross_entropy(head(encodings), batch["label"])
    entropy, size = [], []
    for name in encodings:
        alone = head({n: e if n == name else torch.zeros_like(e) for n, e in encodings.items()})
        logits = alone if fusion else alone - head.classifier.bias / 2  # a linear head's bias is halved
        loss = loss + 0.7 * F.cross_entropy(logits[has[name]], batch["label"][has[name]])
        complete = logits[has["video"]].detach()
        entropy.append(-(complete.softmax(1) * complete.log_softmax(1)).sum(1).mean())
        size.append(complete.abs().sum(1).mean())
    w = asymmetric_weights(torch.stack(entropy), torch.stack(size), 8.0)
    named = dict(model.model.named_parameters())
    expected = dict(zip(named, torch.autograd.grad(loss, [*named.values()]), strict=True))

    for key, gradient in one_step(model, batch).items():
        factor = 1 + w[0] if key.startswith("encoders.audio") else 1 + w[1] if key.startswith("encoders.video") else 1.0
        torch.testing.assert_close(gradient, factor * expected[key], msg=key)


@pytest.mark.parametrize("modalities", [("audio", "video"), ("audio", "video", "touch")], ids=len)
def test_pdmp_s_gradients_are_naive_s_times_two_constants(modalities: tuple[str, ...]) -> None:
    batch = Toy(modalities=modalities).collate([*range(8)])
    naive = one_step(build(modalities=modalities), batch)
    method = PDMP("video", factor=3.0, other_factor=0.25)
    for key, gradient in one_step(build(modalities=modalities, pdmp=method), batch).items():
        room, _, rest = key.partition(".")
        factor = 1.0 if room == "head" else 3.0 if rest.startswith("video") else 0.25
        torch.testing.assert_close(gradient, factor * naive[key], msg=key)


def test_a_name_of_no_modality_is_refused() -> None:
    with pytest.raises(UserError, match="model.pdmp.dominant=smell: must be one of 'audio', 'video'"):
        build(pdmp=PDMP("smell"))
