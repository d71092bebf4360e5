"""Why wrong predictions are wrong, and what to look at next."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from amr.attribution import undisturbed
from amr.fusion.base import pool_tokens
from amr.model import head_of, rows_at_once
from amr.model.protocol import Explained
from amr.model.task import check_classes
from amr.multiviz.prediction import SparsePath, sparse_path
from amr.utils.errors import UserError

Kind = Literal["perception", "interaction", "prediction", "unresolved"]
Selection = Literal["errors", "entropy", "random"]
FOLDS = 5
PARTS = 3  # clips to learn errors from, to choose from, to test on
RIDGE = (1.0, 0.1, 0.01, 0.001)  # λ of the refitted classifier, of which the best over all clips is taken


@dataclass(frozen=True)
class ErrorReport:
    """Causes of E wrong predictions.

    Attributes:
        clips: Positions of the wrong predictions, (E,) int64.
        kinds: Cause of each wrong prediction.
        modalities: The modality whose perception is to blame; None for other kinds.
        perception: Confidence that each modality's perception is, (E, M), in [0, 1], modalities in the model's order.
        interaction: Confidence that the interaction is, (E,), in [0, 1].
        prediction: Confidence that the classifier is, (E,), in [0, 1].
        references: Number of correct clips of the same class that were drawn from, (E,) int64; with fewer than two
            perception and interaction cannot be tested, and are 0.
        head_rows: Rows that the head was run on.
    """

    clips: Tensor
    kinds: list[Kind]
    modalities: list[str | None]
    perception: Tensor
    interaction: Tensor
    prediction: Tensor
    references: Tensor
    head_rows: int


def classify_errors(
    model: Explained,
    encodings: Mapping[str, Tensor],
    labels: Tensor,
    *,
    draws: int = 20,
    refits: int = 3,
    threshold: float = 0.5,
    seed: int = 0,
    batch: int = 4096,
) -> ErrorReport:
    """Sorts each wrong prediction by the first stage at which it goes wrong (kinds: Liang et al. 2023, section 3.4).

    For a wrong clip with encodings e^1 ... e^M and label y, each of K draws takes for every modality m another
    correctly classified clip of class y, with encodings b^m. A draw finds

    - a perception error of m if the head says y with b^m in place of e^m alone, and does not with e^m among the b^j of
      all others: it fails with this encoding, in any company;
    - an interaction error if it says y with each e^m among the others' b^j, and the clip's additive part
      Σ_m f(e^m, b^−m) − (M − 1) f(b) says y too: each encoding is fine in other company, and what is wrong is what the
      pairing adds. With an additive head that part is f(e) itself, so no draw finds one.

    The confidence in each is the share of draws that find it. That in a perception error is multiplied by the share of
    `refits` random partitions into 5 folds in which a ridge classifier of e^m alone (tokens averaged), fitted to the
    other four folds, does not say y: an encoding that names its class is not to blame, whatever the head makes of it.
    The confidence in a prediction error is the share of partitions in which such a classifier of the penultimate
    features does say y. The first of perception, interaction and prediction to reach the threshold is the kind; if none
    does, it is "unresolved", as where several encodings are bad at once. With M = 1 a replaced encoding is another
    clip: what a refit does not repair is then the perception's.

    The head runs on N rows, then K (2M + 1) a wrong clip; K · 3 for M = 2, where the two tests of a modality coincide;
    none for M = 1.

    Args:
        model: The model.
        encodings: Encoding of each modality, (N, D_m) or (N, T, D_m), of wrong and correct clips together.
        labels: Classes, (N,) int64.
        draws: K.
        refits: Number of partitions.
        threshold: Least confidence, in (0, 1].
        seed: Seed of the draws and the partitions.
        batch: Rows that the head sees at once.

    Returns:
        The report, on the CPU.

    Raises:
        UserError: Shapes do not fit, or an option is out of its range.
    """
    check_classes(model, "classify_errors")
    own, batch = {m: encodings[m].detach() for m in model.modalities}, rows_at_once(model, batch)
    labels = labels.detach().cpu().long()
    count, device = len(labels), next(iter(own.values())).device
    if labels.ndim != 1 or any(len(e) != count for e in own.values()):
        raise UserError(f"labels: shape {tuple(labels.shape)}; expected ({len(next(iter(own.values())))},)")
    if min(draws, refits, batch) < 1 or not 0 < threshold <= 1:
        raise UserError(
            f"draws={draws}, refits={refits}, batch={batch}, threshold={threshold}: must be at least 1 each, "
            "and the threshold in (0, 1]"
        )
    if count and not 0 <= int(labels.min()) <= int(labels.max()) < model.num_classes:
        raise UserError(f"labels: must be 0 to {model.num_classes - 1}")
    generator = torch.Generator().manual_seed(seed)
    with undisturbed(model), torch.no_grad():
        parts = [{m: e[i : i + batch] for m, e in own.items()} for i in range(0, count, batch)]
        features = [model.penultimate(part) for part in parts]
        predicted = torch.cat([model.classify(f).argmax(1) for f in features]).cpu() if parts else labels
        clips = (predicted != labels).nonzero()[:, 0]
        perception, interaction = torch.zeros(len(clips), len(own)), torch.zeros(len(clips))
        references, rows = torch.zeros(len(clips), dtype=torch.int64), count
        for row, clip in enumerate(clips.tolist()):
            pool = ((predicted == labels) & (labels == labels[clip])).nonzero()[:, 0]
            references[row] = len(pool)
            if len(pool) < 2 or len(own) < 2:
                continue
            # Each modality from another clip, as far as they go.
            order = torch.stack([torch.randperm(len(pool), generator=generator) for _ in range(draws)])
            drawn = pool[order[:, torch.arange(len(own)) % len(pool)]].to(device)
            perception[row], interaction[row], used = _replaced(model, own, clip, drawn, int(labels[clip]), batch)
            rows += used
    prediction = _refitted(torch.cat(features).cpu(), labels, refits, generator)[clips] if len(clips) else interaction
    if len(own) == 1:
        perception = 1 - prediction[:, None]
    elif len(clips):
        for j, e in enumerate(own.values()):
            perception[:, j] *= 1 - _refitted(pool_tokens(e).cpu(), labels, refits, generator)[clips]
    kinds: list[Kind] = []
    blamed: list[str | None] = []
    for p, i, c in zip(perception, interaction, prediction, strict=True):
        perceived = bool(p.max() >= threshold) and not (len(own) == 1 and c >= threshold)
        kinds.append(
            "perception"
            if perceived
            else "interaction"
            if i >= threshold
            else "prediction"
            if c >= threshold
            else "unresolved"
        )
        blamed.append(model.modalities[int(p.argmax())] if perceived else None)
    return ErrorReport(clips, kinds, blamed, perception, interaction, prediction, references, rows)


def _replaced(
    model: Explained, own: Mapping[str, Tensor], clip: int, drawn: Tensor, label: int, batch: int
) -> tuple[Tensor, Tensor, int]:
    """Shares of draws that find a perception error of each modality, (M,), and an interaction error; and head rows.

    Args:
        model: The model.
        own: Encodings of all clips.
        clip: The wrong clip.
        drawn: Clip that each modality is replaced from, (K, M).
        label: The clip's class.
        batch: Rows that the head sees at once.
    """
    head, (draws, size) = head_of(model), drawn.shape
    # Which modalities a row takes from the clip itself: none; one; all but one (which for M = 2 is one again).
    keeps = [[False] * size, *([j == m for j in range(size)] for m in range(size))]
    keeps += [[j != m for j in range(size)] for m in range(size)] if size > 2 else []
    kept = torch.tensor(keeps, device=drawn.device)[:, None]  # (Q, 1, M)
    sources = torch.where(kept, clip, drawn[None]).flatten(0, 1)  # (Q K, M)
    logits = torch.cat(
        [head({m: e[part[:, j]] for j, (m, e) in enumerate(own.items())}) for part in torch.split(sources, batch)]
    )
    logits = logits.cpu().reshape(len(keeps), draws, -1)  # (Q, K, C)
    alone, without = logits[1 : size + 1], logits[size + 1 :] if size > 2 else logits[1:3].flip(0)
    fits, repairs = alone.argmax(2) == label, without.argmax(2) == label  # (M, K)
    additive = alone.double().sum(0) - (size - 1) * logits[0].double()
    found = fits.all(0) & (additive.argmax(1) == label)
    return (repairs & ~fits).float().mean(1), found.float().mean(), len(sources)


def _refitted(features: Tensor, labels: Tensor, refits: int, generator: torch.Generator) -> Tensor:
    """Share of partitions in which a classifier that has not seen a clip gets it right, (N,)."""
    right = torch.zeros(refits, len(RIDGE), len(labels))
    x, y = features.double().numpy(), labels.numpy()
    for r in range(refits):
        fold = _folds(labels, generator).numpy()
        for f in range(FOLDS):
            train, test = fold != f, fold == f
            if not test.any() or len(set(y[train])) < 2:
                continue
            for i, penalty in enumerate(RIDGE):
                ridge = make_pipeline(
                    StandardScaler(), LogisticRegression(C=1 / (penalty * train.sum()), max_iter=1000)
                )
                right[r, i, test] = torch.from_numpy(ridge.fit(x[train], y[train]).predict(x[test]) == y[test]).float()
    return right[:, int(right.mean((0, 2)).argmax())].mean(0)


def _folds(labels: Tensor, generator: torch.Generator, folds: int = FOLDS) -> Tensor:
    """A fold for each clip, (N,), at random, each class spread evenly."""
    order = torch.randperm(len(labels), generator=generator)
    order = order[labels[order].argsort(stable=True)]
    fold = torch.empty_like(labels)
    fold[order] = torch.arange(len(labels)) % folds
    return fold


@dataclass(frozen=True)
class ErrorUnits:
    """A sparse predictor of errors from the size of the penultimate units.

    Attributes:
        units: Units with a weight, by falling size of it, (K,) int64.
        weights: Change of the log-odds of an error for one standard deviation of |unit|, (K,); positive for units that
            are active on errors.
        auc: Area under the ROC curve on clips that were not fitted; 0.5 is chance.
        path: The classifiers.
        index: The one that is used.
    """

    units: Tensor
    weights: Tensor
    auc: float
    path: SparsePath
    index: int

    def probability(self, penultimate: Tensor) -> Tensor:
        """Probability of an error, (N,), for penultimate features (N, D)."""
        return self.path.logits(penultimate.abs())[self.index].softmax(1)[:, 1]


def error_units(penultimate: Tensor, wrong: Tensor, *, lambdas: int = 15, seed: int = 0) -> ErrorUnits:
    """The units most active on errors: L1 logistic regression of `wrong` on |penultimate|.

    The penalty is the one whose classifiers, cross-fitted in 5 folds, rank held-out errors best (area under the ROC
    curve, which does not depend on how rare errors are).

    Args:
        penultimate: Features, (N, D).
        wrong: Whether the model's prediction is wrong, (N,) bool.
        lambdas: Number of penalties tried, from the smallest at which no unit is used to a thirtieth of it.
        seed: Seed of the folds.

    Returns:
        The units, and the predictor.

    Raises:
        UserError: Shapes do not fit, or there are fewer than 5 wrong or 5 right predictions.
    """
    if wrong.shape != penultimate.shape[:1] or penultimate.ndim != 2:
        raise UserError(f"wrong: shape {tuple(wrong.shape)}; expected one entry for each row of penultimate (N, D)")
    errors = int(wrong.bool().sum())
    if min(errors, len(wrong) - errors) < FOLDS:
        raise UserError(f"wrong: {errors} of {len(wrong)}; must be at least {FOLDS} wrong and {FOLDS} right ones")
    sizes, labels = penultimate.detach().abs(), wrong.long().to(penultimate.device)
    # Beyond a thirtieth of the largest penalty nothing is sparse, errors are told apart by chance, and steps are slow.
    top = sparse_path(sizes, labels, 1.0, 1, tol=1e-3).lambdas
    path = sparse_path(sizes, labels, 1.0, top * torch.logspace(0, -1.5, lambdas, dtype=top.dtype).to(top), tol=1e-3)
    fold = _folds(labels.cpu(), torch.Generator().manual_seed(seed)).to(labels.device)
    scores = torch.zeros(lambdas, len(wrong), dtype=torch.float64, device=labels.device)
    for f in range(FOLDS):
        part = sparse_path(sizes[fold != f], labels[fold != f], 1.0, path.lambdas, tol=1e-3)
        logits = part.logits(sizes[fold == f])
        scores[:, fold == f] = logits[:, :, 1] - logits[:, :, 0]
    aucs = [float(roc_auc_score(labels.cpu().numpy(), row.cpu().numpy())) for row in scores]
    index = max(range(lambdas), key=lambda i: aucs[i])  # the sparsest of equals
    weights = path.coefficients[index, 1] - path.coefficients[index, 0]
    units = weights.abs().argsort(descending=True, stable=True)[: int((weights != 0).sum())]
    return ErrorUnits(units, weights[units], aucs[index], path, index)


def select_clips(
    logits: Tensor,
    budget: int,
    by: Selection,
    *,
    predictor: ErrorUnits | None = None,
    penultimate: Tensor | None = None,
    seed: int = 0,
) -> Tensor:
    """New clips to label or look at, within a budget.

    Args:
        logits: The model's logits of the new clips, (N, C).
        budget: How many to take.
        by: "errors": the likeliest errors by a predictor fitted on other clips; "entropy": the model's least certain
            predictions, by −Σ p log p; "random": any.
        predictor: For "errors".
        penultimate: Penultimate features of the new clips, (N, D), for "errors".
        seed: For "random".

    Returns:
        Positions of the clips, (budget,), first choice first; ties by position.

    Raises:
        UserError: The budget is below 1 or above N, `by` is unknown, or "errors" has no predictor or features.
    """
    if not 1 <= budget <= len(logits):
        raise UserError(f"budget={budget}: must be 1 to {len(logits)}")
    match by:
        case "errors":
            if predictor is None or penultimate is None or len(penultimate) != len(logits):
                raise UserError("by='errors': needs a predictor, and penultimate features of the same clips")
            score = predictor.probability(penultimate)
        case "entropy":
            score = torch.special.entr(logits.detach().double().softmax(1)).sum(1)
        case "random":
            return torch.randperm(len(logits), generator=torch.Generator().manual_seed(seed))[:budget]
        case _:
            raise UserError(f"by={by!r}: must be one of {', '.join(get_args(Selection))}")
    return score.argsort(descending=True, stable=True)[:budget].cpu()


@dataclass(frozen=True)
class SelectionTrial:
    """Gain from one way to choose clips, in one partition.

    Attributes:
        by: How they were chosen; "none" and "all" of the pool are what any choice lies between.
        budget: How many.
        seed: Seed of the partition.
        accuracy: Accuracy of the refitted classifier on clips that it has not seen, in [0, 1].
        errors_found: Share of the chosen clips that the model gets wrong, in [0, 1]; None if none was chosen.
    """

    by: Selection | Literal["none", "all"]
    budget: int
    seed: int
    accuracy: float
    errors_found: float | None


def compare_selections(
    features: Tensor,
    logits: Tensor,
    labels: Tensor,
    *,
    fitted: tuple[Tensor, Tensor] | None = None,
    share: float = 0.25,
    seeds: int = 5,
    ridge: float = 0.01,
) -> list[SelectionTrial]:
    """Targeted selection against the least certain predictions and against chance, at the same budget.

    Each seed parts the clips in three, wrong predictions and the classes evenly. On the first part `error_units` learns
    where the model errs; from the second `select_clips` takes a share, each way; the third is what is tested on. What
    is trained again is the last layer: a multinomial ridge classifier of the penultimate features (sklearn) of the
    clips in `fitted`, the first part and the chosen ones. "none" and "all" choose nothing and the whole pool.

    Args:
        features: Penultimate features, (N, D), of clips that the model was not trained on.
        logits: The model's, (N, C).
        labels: Classes, (N,).
        fitted: Features and labels of training clips.
        share: Share of the pool that may be chosen, in (0, 1).
        seeds: Number of partitions, at least 1.
        ridge: λ of the classifier, on standardised features, positive.

    Returns:
        One trial per seed and way to choose.

    Raises:
        UserError: An option is out of its range, or a first part has fewer than 5 wrong or 5 right predictions.
    """
    if not 0 < share < 1 or seeds < 1 or not ridge > 0:
        raise UserError(f"share={share}, seeds={seeds}, ridge={ridge}: must be in (0, 1), at least 1 and positive")
    features, logits, labels = (x.detach().cpu() for x in (features, logits, labels))
    wrong, trials = logits.argmax(1) != labels, []
    base = (features[:0], labels[:0]) if fitted is None else (fitted[0].detach().cpu(), fitted[1].cpu())
    for seed in range(seeds):
        part = _folds(labels + logits.shape[1] * (~wrong), torch.Generator().manual_seed(seed), PARTS)
        known, pool, test = ((part == p).nonzero()[:, 0] for p in range(PARTS))
        budget = max(round(share * len(pool)), 1)
        predictor = error_units(features[known], wrong[known], lambdas=8, seed=seed)
        chosen: dict[Selection | Literal["none", "all"], Tensor] = {"none": pool[:0], "all": pool}
        for by in get_args(Selection):
            taken = select_clips(logits[pool], budget, by, predictor=predictor, penultimate=features[pool], seed=seed)
            chosen[by] = pool[taken]
        for by, clips in chosen.items():
            rows = torch.cat([known, clips])
            x, y = torch.cat([base[0], features[rows]]), torch.cat([base[1], labels[rows]])
            classifier = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (ridge * len(x)), max_iter=300))
            answers = classifier.fit(x.double().numpy(), y.numpy()).predict(features[test].double().numpy())
            found = float(wrong[clips].double().mean()) if len(clips) else None
            accuracy = float(np.mean(answers == labels[test].numpy()))
            trials.append(SelectionTrial(by, len(clips), seed, accuracy, found))
    return trials
