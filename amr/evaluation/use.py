"""How a model uses its modalities, from cached encodings: pure functions of one number or one number per clip.

Only the head runs. `Correct` tables, `right(coalition_outputs(...), labels)`, hold whether each clip is right for every
set of modalities that is kept, which is all that accuracy with a modality missing, its Shapley values, cooperation,
utilisation and confusion are made of.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from amr.attribution import coalition_index, shapley_values
from amr.evaluation.head import repaired_answers
from amr.fusion.base import pool_tokens
from amr.model.protocol import Explained

Correct = Tensor
"""(2^M, N) float64 of 0 and 1; bit m of the first index says whether modality m is kept."""


def right(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether the highest logit (..., N, C) is the label's (N,): (..., N) float64 of 0 and 1."""
    return (logits.argmax(-1) == labels).double()


def missing(correct: Tensor) -> Tensor:
    """The rows of a table by coalition (2^M, ...) in which one modality is missing: (M, ...)."""
    whole = len(correct) - 1
    return torch.stack([correct[whole - (1 << m)] for m in range(whole.bit_length())])


def alone(correct: Tensor) -> Tensor:
    """The rows of a table by coalition (2^M, ...) in which one modality is kept: (M, ...)."""
    return torch.stack([correct[1 << m] for m in range((len(correct) - 1).bit_length())])


def accuracy_shapley(correct: Correct) -> Tensor:
    """Shapley value of each modality in the accuracy (Hu, Li, Zhou 2022), per clip: (N, M).

    The mean over clips of what a modality adds to the accuracy, averaged over the orders in which modalities come;
    the values add up to the accuracy with all of them minus that with none.
    """
    return shapley_values(correct)


def cooperation(correct: Correct, first: int, second: int) -> Tensor:
    """Gain in accuracy by two modalities together beyond what each adds alone, per clip: (N,).

    The Shapley interaction index (Grabisch, Roubens 1999); for two modalities v(12) − v(1) − v(2) + v(∅), Hu, Li, Zhou
    2022's cooperation. Positive: synergy. Negative: either modality is enough.
    """
    return coalition_index(correct, [first, second])


def confused(correct: Correct) -> Tensor:
    """Right with one modality alone and wrong with all together, (M, N) (Zverev et al. 2025: modality confusion)."""
    return alone(correct) * (1 - correct[-1])


def shuffled(
    model: Explained,
    encodings: Mapping[str, Tensor],
    labels: Tensor,
    *,
    repeats: int = 10,
    seed: int = 0,
    batch: int = 4096,
) -> Tensor:
    """How often each clip is right when one modality is another clip's (Gat, Schwartz, Schwing 2021): (N, M).

    In each repeat a random cycle through all clips says whose encoding each one gets, never its own. repeats · M · N
    head rows.

    Args:
        model: The model.
        encodings: Encoding of each modality, (N, ...), N at least 2.
        labels: (N,) int64.
        repeats: Cycles.
        seed: Seed of the cycles.
        batch: Head rows at a time.

    Returns:
        Fractions of the repeats in [0, 1], float64.
    """
    count, generator = len(labels), torch.Generator().manual_seed(seed)
    partners = torch.empty(repeats, count, dtype=torch.long)
    for row in partners:
        cycle = torch.randperm(count, generator=generator)
        row[cycle] = cycle.roll(1)
    partners = partners.flatten().to(labels.device)
    each = torch.arange(count, device=labels.device).repeat(repeats)
    answers = repaired_answers(model, encodings, partners, each, batch).view(-1, repeats, count)
    return (answers == labels).double().mean(1).T


def calibration_bins(probabilities: Tensor, correct: Tensor, bins: int = 15) -> tuple[Tensor, Tensor]:
    """Terms of the expected calibration error: each clip's bin and its gap.

    Args:
        probabilities: (N, C).
        correct: Whether the highest is the label's, (N,) of 0 and 1.
        bins: Number of bins of equal width, over the highest probability.

    Returns:
        Bins, (N, bins + 1) float64 of 0 and 1 (the last is that of probability 1, as torchmetrics has it), and the
        highest probability minus `correct`, (N,).
    """
    confidence = probabilities.double().amax(1)
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=confidence.device)
    place = torch.bucketize(confidence.float(), edges.float(), right=True) - 1
    return torch.nn.functional.one_hot(place.clamp(0, bins), bins + 1).double(), confidence - correct


def calibration_error(bins: Tensor, gap: Tensor, weights: Tensor) -> Tensor:
    """Expected calibration error (Guo et al. 2017, eq. 3): Σ_b |Σ_{i in b} gap_i| / N.

    Args:
        bins: (N, B) of 0 and 1.
        gap: (N,).
        weights: How often each clip is there, (R, N).

    Returns:
        (R,) in [0, 1].
    """
    return (weights @ (bins * gap[:, None])).abs().sum(1) / weights.sum(1)


def calibration(probabilities: Tensor, labels: Tensor, bins: int = 15) -> tuple[float, list[dict[str, Any]]]:
    """Expected calibration error of clips, and the bins that it adds up from.

    Args:
        probabilities: (N, C).
        labels: (N,).
        bins: How many, of equal width in confidence.

    Returns:
        The error in [0, 1], and of each bin `low`, `high`, `clips`, and the mean `confidence` and `accuracy`, None
        without clips. A probability of 1 is shown in the last bin.
    """
    confidence, answer = probabilities.double().max(1)
    correct = (answer == labels).double()
    member, gap = calibration_bins(probabilities, correct, bins)
    error = float(calibration_error(member, gap, torch.ones(1, len(gap), dtype=torch.float64, device=gap.device)))
    shown = torch.cat([member[:, : bins - 1], member[:, bins - 1 :].sum(1, keepdim=True)], dim=1)
    counts, sums = shown.sum(0), shown.T @ torch.stack([confidence, correct], dim=1)
    means = (sums / counts[:, None]).tolist()
    return error, [
        {
            "low": b / bins,
            "high": (b + 1) / bins,
            "clips": int(count),
            "confidence": means[b][0] if count else None,
            "accuracy": means[b][1] if count else None,
        }
        for b, count in enumerate(counts.tolist())
    ]


def class_means(values: Tensor, labels: Tensor, weights: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Mean of values (N,) in each class under weights (R, N), and which classes have any weight, both (R, C)."""
    member = torch.nn.functional.one_hot(labels, classes).double()
    total = weights @ member
    return (weights @ (member * values.double()[:, None])) / total.clamp_min(1), (total > 0).double()


def linear_probe(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> Tensor:
    """Whether a linear classifier of one frozen encoder's outputs gets each clip right (Alain, Bengio 2016): (N,).

    Args:
        train: Encodings that it is fitted to, (N', D) or (N', T, D).
        train_labels: (N',); at least two classes.
        test: Encodings of the clips to classify.
        test_labels: (N,).

    Returns:
        (N,) float64 of 0 and 1.
    """
    return (probe_classes(train, train_labels, test) == test_labels.cpu()).double()


def probe_classes(train: Tensor, train_labels: Tensor, test: Tensor) -> Tensor:
    """Class that a linear classifier of one frozen encoder's outputs predicts of each clip, (N,) on the CPU.

    Logistic regression on standardised features with sklearn's default penalty (C = 1); token sequences are averaged.

    Args:
        train: Encodings that it is fitted to, (N', D) or (N', T, D).
        train_labels: (N',); at least two classes.
        test: Encodings of the clips to classify.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, others = (pool_tokens(part).double().cpu().numpy() for part in (train, test))
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    probe.fit(features, train_labels.cpu().numpy())
    return torch.from_numpy(probe.predict(others))
