"""How long an analysis will take, from a few rows that are timed."""

import time
from collections.abc import Callable
from functools import partial
from itertools import combinations
from typing import Any

import torch

from amr.attribution import undisturbed
from amr.model import encode_alone, head_of, rows_at_once
from amr.multiviz.analysis.analysis import Analysis
from amr.multiviz.analysis.plan import STAGES
from amr.multiviz.analysis.sizes import REPEATS, SIMULATED, SYNERGIES, TRUST_CLIPS, joint_samples, masks_of, partners_of
from amr.multiviz.held import encoder_rows

BACKWARD = 3  # a row with its gradient, in rows without; a further class's gradient from the same pass costs one less
STEPS = 33  # rows of integrated gradients, and of GradientSHAP
TIMED = 3  # calls, the fastest of which counts: another process may stop one for longer than it takes
AGAIN = 8  # how often a method explains a clip whose trust is measured


def rows_per_clip(analysis: Analysis) -> dict[str, tuple[dict[str, int], int]]:
    """Encoder rows by modality, and head rows, of one clip: of U alone, and of all maps of an explained clip."""
    fine, coarse = ({m: len(a) for m, a in atoms.items()} for atoms in (analysis.fine, analysis.coarse))
    classes, samples = analysis.plan.classes, analysis.samples
    own, head = dict.fromkeys(fine, 0), 0
    for m, size in fine.items():
        masks = masks_of(samples, size)
        own[m] += 1 + size + 2 * REPEATS * masks + (1 + (BACKWARD - 1) * classes) * (2 * STEPS + 2)
        own[m] += BACKWARD * classes * 4
        head += own[m]
    alone = (dict(own), head)
    for a, b in combinations(fine, 2):
        drawn = 2 * REPEATS * joint_samples(samples, coarse[a], coarse[b])
        for m in (a, b):
            own[m] += fine[m] + 2 * min(drawn // 2, 1 << coarse[m]) + coarse[m]
        head += (1 + fine[a]) * (1 + fine[b]) + drawn + (1 + coarse[a]) * (1 + coarse[b])
        head += BACKWARD * classes * (1 + min(fine[a], fine[b]))
    if len(fine) > 1:
        samples, partners = partners_of(analysis)
        for m, size in coarse.items():
            masks = REPEATS * max(samples, size + 2)
            own[m] += min(masks, 1 << size)
            head += masks * partners
    return {"U": alone, "clip": (own, head)}


def estimate(analysis: Analysis, stages: Any) -> tuple[int, float]:
    """Head rows of what is left to do, and its seconds, from a batch of each encoder and of the head that is timed.

    Args:
        analysis: The analysis, its split encoded.
        stages: Names of the stages that are asked for.
    """
    wanted = {s for s in STAGES if any(s == stage or s in STAGES[stage] for stage in stages)}
    rows = rows_per_clip(analysis)
    left = sum(not analysis.archive(position).is_file() for position in analysis.chosen)
    clips = {"clip": left if "clips" in wanted else 0, "U": 0}
    if "trust" in wanted and not (analysis.out / "trust.parquet").is_file():
        clips["U"] += TRUST_CLIPS * AGAIN
    own, head = dict.fromkeys(analysis.model.modalities, 0), 0
    for part, count in clips.items():
        for m, each in rows[part][0].items():
            own[m] += count * each
        head += count * rows[part][1]
    sizes = [1 + len(atoms) for atoms in analysis.fine.values()]
    if "simulation" in wanted and not (analysis.out / "simulation.parquet").is_file():
        head += SIMULATED * (sum(sizes) + sum(a * b for a, b in combinations(map(len, analysis.coarse.values()), 2)))
    if "trust" in wanted and len(sizes) > 1:
        head += SYNERGIES * (len(sizes) + 1) * 8 * 13
    speed = _seconds_per_row(analysis)
    return head, head * speed[""] + sum(count * speed[m] for m, count in own.items())


def _seconds_per_row(analysis: Analysis) -> dict[str, float]:
    """Seconds of a row of each encoder, by modality, and of the head, by an empty name."""
    model = analysis.model
    size = max(1, min(64, rows_at_once(model, 64), len(analysis.chosen)))
    few = analysis.chosen[:size]
    inputs, encodings, head = analysis.inputs(few), analysis.encodings(few), head_of(model)
    rows = {m: min(size, encoder_rows(x, size)) for m, x in inputs.items()}
    work: dict[str, Callable[[], Any]] = {m: partial(encode_alone, model, m, inputs[m][:n]) for m, n in rows.items()}
    work[""] = partial(head, encodings)
    found = {}
    with undisturbed(model), torch.no_grad():
        for name, call in work.items():
            call()  # what is made on the first call does not count
            found[name] = min(_seconds(call) for _ in range(TIMED)) / rows.get(name, size)
    return found


def _seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def in_words(seconds: float) -> str:
    """A duration in words."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
