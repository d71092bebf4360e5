"""InterSHAP: the part of a model's behaviour that modalities bring only together (Wenderoth et al. 2024)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from amr.attribution import Score, class_score, coalition_index
from amr.evaluation.table import Table

ROUNDING = 1e-6
"""Entries below this part of a clip's largest score are the single-precision head's rounding, and count as 0."""


def interaction_matrix(scores: Tensor) -> Tensor:
    r"""Splits what the modalities change in a score into main effects and interactions of pairs.

    With v(S) the score of a clip when only the modalities in S are kept, φ_i the Shapley value and I_ij the Shapley
    interaction index (Grabisch, Roubens 1999),

        φ_ij = I_ij / 2   (i ≠ j),   φ_ii = φ_i − Σ_{j≠i} φ_ij,

    so that a matrix adds up to v(all) − v(none), and an interaction is shared equally by its two modalities.

    Args:
        scores: v, (2^M, N); bit m of the first index says whether modality m is kept. See `coalition_outputs`.

    Returns:
        Symmetric matrices (N, M, M), float64.
    """
    scores = scores.double()
    count = (len(scores) - 1).bit_length()
    rows = [torch.stack([coalition_index(scores, sorted({i, j})) for j in range(count)], 1) for i in range(count)]
    matrix, rounding = split_indices(torch.stack(rows, 1)), ROUNDING * scores.abs().amax(0)
    return torch.where(matrix.abs() > rounding[:, None, None], matrix, 0.0)


def split_indices(indices: Tensor) -> Tensor:
    """The matrices of `interaction_matrix` from Shapley values and interaction indices.

    Args:
        indices: I_ij, symmetric, (N, M, M), with the Shapley values on the diagonal.
    """
    matrix = indices / 2
    main = 3 * matrix.diagonal(dim1=1, dim2=2) - matrix.sum(
        2
    )  # φ_i, which is twice its half, without the others' halves
    return matrix.diagonal_scatter(main, dim1=1, dim2=2)


def local_intershap(matrix: Tensor) -> Tensor:
    r"""InterSHAP of each clip: Σ_{i≠j} |φ_ij| / Σ_{i,j} |φ_ij|.

    Args:
        matrix: Main effects and interactions, (N, M, M), of `interaction_matrix`.

    Returns:
        (N,) in [0, 1]; 0 where the score is additive in the modalities, 1 where none has an effect alone. NaN where
        nothing changes whatever is missing.
    """
    sizes = matrix.abs()
    total = sizes.sum((1, 2))
    return (total - sizes.diagonal(dim1=1, dim2=2).sum(1)) / total  # 0 / 0 is NaN


def global_intershap(matrix: Tensor, weights: Tensor | None = None) -> Tensor:
    r"""InterSHAP of clips together: that of the matrix of means, Σ_{i≠j} |mean φ_ij| / Σ_{i,j} |mean φ_ij|.

    Args:
        matrix: Main effects and interactions, (N, M, M), of `interaction_matrix`.
        weights: How often each clip is there, (R, N); None: each once.

    Returns:
        (R,) in [0, 1]; NaN where the mean matrix is 0.
    """
    count = matrix.shape[1]
    if weights is None:
        weights = matrix.new_ones(1, len(matrix))
    means = weights.to(matrix) @ matrix.flatten(1) / weights.sum(1, keepdim=True)
    return local_intershap(means.view(-1, count, count))


def predicted_scores(logits: Tensor, score: Score | None = "logit") -> Tensor:
    """Scores (2^M, N) of the class that all modalities predict.

    Args:
        logits: Logits of every set of modalities, (2^M, N, C), of `coalition_outputs`.
        score: `logit`, `probability` (its log-odds), or None for the softmax probability itself.
    """
    classes = logits[-1].argmax(1)
    if score is not None:
        return class_score(logits, classes, score)
    return logits.softmax(-1).gather(-1, classes.expand(logits.shape[:-1])[..., None])[..., 0]


def intershap_rows(table: Table, names: Sequence[str], logits: Tensor) -> None:
    """Adds the rows of InterSHAP to a table.

    Args:
        table: Table of the N clips.
        names: The M modalities.
        logits: Logits of every set of modalities, (2^M, N, C), of `coalition_outputs`.
    """
    matrix = interaction_matrix(predicted_scores(logits))
    clips = local_intershap(matrix)
    table.add("intershap", "", lambda weights: global_intershap(matrix, weights))
    table.mean("intershap_local", "", clips, ~clips.isnan())
    probability = interaction_matrix(predicted_scores(logits, None))
    table.add("intershap_probability", "", lambda weights: global_intershap(probability, weights))
    for i, name in enumerate(names):
        table.mean("main_effect", name, matrix[:, i, i])
        for j in range(i):
            table.mean("interaction", f"{names[j]}+{name}", 2 * matrix[:, i, j])
