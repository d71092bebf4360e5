"""Patients: a table and a time series whose risks add up. Which column, and which hours of which channel, is known."""

import torch

from amr.datamodules.atoms import Kind
from amr.datamodules.synthetic.samples import Samples, drawn, generator_of, marked

COLUMNS = ("age", "weight", "glucose", "creatinine", "albumin")
CHANNELS = ("pulse", "pressure", "breathing", "saturation")
HOURS, WINDOWS = 24, 6
_BAD = torch.tensor([1.0, 1.0, 1.0, 1.0, -1.0])  # direction of risk of each column
_ALARM = torch.tensor([1.0, -1.0, 1.0, -1.0])  # and of each channel


def patients(count: int, seed: int = 0, noise: float = 0.3) -> Samples:
    """A table and a series of 24 hours, each of which raises or lowers a patient's risk on its own.

    One of 5 columns is far from normal, by 1 to 3 in the direction of risk or against it. In one channel of four, for
    4 hours, the series is as far from normal. The risk is the sum of the two, and the class its sign: there is no
    interaction in the log-odds. All else is noise.

    The evidence is the column, and the window of the channel. No pair decides together. The groups are the column.

    Args:
        count: Number of samples, at least 1.
        seed: Seed of the samples.
        noise: Standard deviation of what is normal.

    Returns:
        Samples of the modalities `table`, (N, 5), and `series`, (N, 24, 4).

    Raises:
        UserError: The count or the seed is too small.
    """
    generator = generator_of(count, seed)
    signs = 2 * torch.randint(2, (2, count), generator=generator) - 1
    risk = (1 + 2 * torch.rand(2, count, generator=generator)) * signs  # of the table, and of the series
    column, channel, window = (drawn(generator, count, n) for n in (len(COLUMNS), len(CHANNELS), WINDOWS))
    rows = torch.arange(count)
    table = noise * torch.randn(count, len(COLUMNS), generator=generator)
    table[rows, column] += risk[0] * _BAD[column]
    series = noise * torch.randn(count, WINDOWS, HOURS // WINDOWS, len(CHANNELS), generator=generator)
    series[rows, window, :, channel] += (risk[1] * _ALARM[channel])[:, None]
    return Samples(
        {"table": table, "series": series.flatten(1, 2)},
        (risk.sum(0) > 0).long(),
        ("stays", "worsens"),
        {
            "table": Kind("table", names=COLUMNS, baseline="zero"),
            "series": Kind("series", names=CHANNELS, blocks=WINDOWS, seconds=HOURS, baseline="zero"),
        },
        {
            "table": marked(column, len(COLUMNS)),
            "series": marked(channel * WINDOWS + window, len(CHANNELS) * WINDOWS),
        },
        {},
        column,
    )
