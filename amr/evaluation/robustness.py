"""How a checkpoint uses its modalities and what it loses when one goes wrong: `measure`.

The clips are encoded once; every measure that changes no input runs the head alone. Corrupting a modality runs that
modality's encoder again, and no other. docs/robustness.md says what each measure is.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import torch

from amr.attribution import (
    Score,
    modules_in,
    undisturbed,
)
from amr.datamodules import ClipDataModule
from amr.datamodules.corruptions import Corruptible
from amr.evaluation.corruption import corruption_rows
from amr.evaluation.metrics import measure_encodings
from amr.evaluation.probes import check_unimodal, evidence_rows, probe_rows
from amr.evaluation.table import Row
from amr.model import HasModel, bare_model
from amr.model.encoded import Context, Encoded, Split, encode, logits_of
from amr.model.loaders import Data, as_data
from amr.model.protocol import Explained
from amr.model.task import check_classes
from amr.utils.errors import UserError


def measure(
    model: Explained | HasModel,
    data: Data,
    split: Split = "test",
    *,
    clean: Encoded | None = None,
    train: Encoded | None = None,
    unimodal: Mapping[str, Explained | float] | None = None,
    corruptions: bool = True,
    corruption_clips: int | None = 1000,
    train_clips: int | None = 2000,
    resamples: int = 1000,
    seed: int = 0,
    score: Score = "probability",
    ig_steps: int | None = None,
    parts: Path | None = None,
    context: Context = nullcontext,
) -> list[Row]:
    """Every measure of a model on a split, with 95 % bootstrap intervals over clips.

    The model runs where it is, in eval mode; it, its gradients and all random states are left as they were. Under DDP
    every process encodes its part and all return the same rows.

    Args:
        model: As `amr.load_model` gives it, or a classifier of one.
        data: The data module, prepared, or the loaders of `split` and of train, by name. Corruptions need one of amr's,
            or another `Corruptible`.
        split: Split whose clips are used, such as `test`.
        clean: The split's clips, where they are encoded already.
        train: Training clips that give the mean encoding and the probes' examples; None: encoded here, from the data
            module's `clips_of`, or its training loader if it is not one of amr's.
        unimodal: For each modality the unimodal model to compare the probe with, or its accuracy.
        corruptions: Whether to corrupt inputs: the part that runs encoders.
        corruption_clips: At most so many clips are corrupted, chosen by a hash of their ids; None for all.
        train_clips: At most so many training clips are encoded; None for all.
        resamples: Number of resamples of the bootstrap.
        seed: Seed of resamples, pairings and corruptions.
        score: Score that shares attribute, as in `attribution_shares`; for the run's dominance its `dominance.score`.
        ig_steps: Points of integrated gradients; the run's `dominance.ig_steps`.
        parts: A folder of its own, for each corruption that is done: a later call with the same model, clips and
            options continues from there. It is the caller's to remove; None: nothing is kept.
        context: Context in which the encoders run, e.g. autocast.

    Returns:
        The rows; a measure that is not defined (no clip of a kind, a correlation of constants) has none.

    Raises:
        UserError: Fewer than two clips have every modality, or a unimodal model does not fit.
    """
    model, data = bare_model(model), as_data(data)
    check_classes(model, "robustness")
    check_unimodal(model, unimodal or {})
    if clean is None:
        clean = encode(model, data, split, None, seed=seed, context=context)
    if len(clean.ids) < 2:
        raise UserError(f"robustness: {len(clean.ids)} clips of {split} have every modality; must be at least 2")
    if train is None:
        train = encode(model, data, "train", train_clips, seed=seed, context=context)
    rows = measure_encodings(model, clean, train, resamples=resamples, seed=seed, score=score, ig_steps=ig_steps)
    rows += probe_rows(model, data, split, clean, train, unimodal or {}, resamples=resamples, seed=seed)
    if isinstance(data, ClipDataModule):
        rows += evidence_rows(model, data, clean, resamples=resamples, seed=seed, score=score, ig_steps=ig_steps)
    if corruptions and isinstance(data, Corruptible):
        rows += corruption_rows(
            model,
            data,
            split,
            clean.some(corruption_clips, seed),
            train,
            resamples=resamples,
            seed=seed,
            score=score,
            ig_steps=ig_steps,
            parts=None if parts is None else (parts, _digest(model, clean, train)),
            context=context,
        )
    return rows


def _digest(model: Explained, *clips: Encoded) -> str:
    """SHA-256 of a model's weights and of clips as it sees them, by which earlier measurements are recognized."""
    digest = hashlib.sha256()
    tensors = [value for module in modules_in(model) for value in module.state_dict().values()]
    for part in clips:
        digest.update(json.dumps(part.ids).encode())
        with undisturbed(model), torch.no_grad():
            tensors += [part.labels, logits_of(model, part.encodings), *part.encodings.values()]
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
