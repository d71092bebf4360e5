"""How much of each kind of work an analysis does: rows, clips, partners."""

from amr.multiviz.analysis.analysis import Analysis

REPEATS = 2  # of sampled methods
TRUST_CLIPS = 4  # each is explained some ten times
SIMULATED = 60  # clips of the simulated user, at most
SYNERGIES = 32  # the maps are there: only sets of atoms are encoded
WHOLE = 8  # atoms of two modalities whose sets are all taken: a few draws may leave some pair undetermined
PARTNERS, MASKS = 4, 64  # of DIME where a row of the head costs a pass of the whole network


def masks_of(samples: int, atoms: int) -> int:
    """Number of masks per repeat of LIME and KernelSHAP."""
    return max(samples, 2 * atoms + 2) // 2 * 2


def joint_samples(samples: int, first: int, second: int) -> int:
    """Number of masks per repeat of joint LIME and SHAP for so many atoms; all possible ones for few atoms."""
    drawn = max(samples, 2 * (2 + (1 + first) * (1 + second)))
    return max(drawn, 1 << first + second) if first + second <= WHOLE else drawn


def partners_of(analysis: Analysis) -> tuple[int, int]:
    """Number of masks per repeat of DIME, and of clips that are paired with one.

    Where the head is the whole network these are few: all of them would cost more than all other maps together.
    """
    if getattr(analysis.model, "meets_early", False):
        return min(analysis.samples, MASKS), min(PARTNERS, len(analysis.chosen))
    return analysis.samples, len(analysis.chosen)
