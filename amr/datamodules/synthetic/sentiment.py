"""Speakers in words, sound and video, whose deciding word, second and frame are known."""

import torch

from amr.datamodules.atoms import Kind
from amr.datamodules.synthetic.samples import Samples, drawn, generator_of, marked, orders

WORDS = (
    *("<pad>", "<mask>", "not", "good", "great", "lovely", "bad", "awful", "boring"),
    *("the", "movie", "plot", "actor", "was", "it", "and", "scene", "music", "we", "saw", "really", "then"),
)
LENGTH = 8  # words, seconds and frames
CHANNELS = ("pitch", "loudness", "rate")
SIDE = 8  # pixels
NEGATED = 1 / 3
_FIRST_FILLER = WORDS.index("the")


def sentiment(count: int, seed: int = 0, noise: float = 0.3) -> Samples:
    """Three modalities that each speak for or against, and a negation that turns the sum around.

    One of 8 words is for ("good") or against ("bad"); in one of 8 seconds pitch, loudness and rate are all high or all
    low; in one of 8 frames the mouth smiles or frowns. The majority of the three is the sentiment, positive or
    negative. In a third of the samples the text also holds "not", and the sentiment is the opposite: so "not" decides
    only together with the second and the frame (and with the other word, within the text). Without "not" the three
    add up.

    The evidence is that word, second (in all channels) and frame, and "not" where it is. The groups are 0, and 1 where
    it is.

    Args:
        count: Number of samples, at least 1.
        seed: Seed of the samples.
        noise: Standard deviation of the noise on sound and video, in which a cue has the size 1.

    Returns:
        Samples of the modalities `text`, ids (N, 8), `audio`, (N, 8, 3), and `video`, (N, 8, 1, 8, 8).

    Raises:
        UserError: The count or the seed is too small.
    """
    generator = generator_of(count, seed)
    says = 2 * torch.stack([drawn(generator, count, 2) for _ in range(3)]) - 1  # by words, sound and video
    negated = torch.rand(count, generator=generator) < NEGATED
    rows, places = torch.arange(count), orders(generator, count, LENGTH)
    word, other = places[:, 0], places[:, 1]
    text = _FIRST_FILLER + torch.randint(len(WORDS) - _FIRST_FILLER, (count, LENGTH), generator=generator)
    text[rows, word] = torch.where(says[0] > 0, 3, 6) + drawn(generator, count, 3)
    text[rows[negated], other[negated]] = WORDS.index("not")
    second, frame = drawn(generator, count, LENGTH), drawn(generator, count, LENGTH)
    audio = noise * torch.randn(count, LENGTH, len(CHANNELS), generator=generator)
    audio[rows, second] += says[1][:, None]
    video = noise * torch.randn(count, LENGTH, 1, SIDE, SIDE, generator=generator)
    video[:, :, 0, 2, [2, 5]] += 1  # eyes
    video[:, :, 0, 5, 3:5] += 1  # the middle of the mouth; its corners are up or down
    video[rows, frame, 0, 5 - says[2], 2] += 1
    video[rows, frame, 0, 5 - says[2], 5] += 1
    negation = marked(torch.where(negated, other, -1), LENGTH)
    heard, seen = marked(second, LENGTH).repeat(1, len(CHANNELS)), marked(frame, LENGTH)
    return Samples(
        {"text": text, "audio": audio, "video": video},
        ((says.sum(0) > 0) != negated).long(),
        ("negative", "positive"),
        {
            "text": Kind("tokens", vocabulary=WORDS),
            "audio": Kind("series", names=CHANNELS, seconds=LENGTH),
            "video": Kind("frames", blocks=(LENGTH, 1, 1), coarse=(LENGTH, 1, 1)),
        },
        {"text": marked(word, LENGTH) | negation, "audio": heard, "video": seen},
        {
            ("text", "audio"): negation[:, :, None] & heard[:, None],
            ("text", "video"): negation[:, :, None] & seen[:, None],
        },
        negated.long(),
    )
