"""Pictures of coloured shapes, with questions or captions. The object that a word names is known."""

import torch
from torch import Tensor

from amr.datamodules.atoms import Kind
from amr.datamodules.synthetic.samples import Samples, drawn, generator_of, marked, orders

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = ("red", "green", "blue", "yellow")
WORDS = (
    *("<pad>", "<mask>", "what", "which", "colour", "shape", "is", "has", "the", "thing", "single", "a", "and"),
    *SHAPES,
    *COLOURS,
)
GRID, CELL = 4, 8  # cells a side; pixels a side of a cell
OBJECTS = 3
QUESTION, CAPTION = 6, 7  # words
GREY = 0.1  # of an empty cell
_ID = {word: i for i, word in enumerate(WORDS)}
_RGB = torch.tensor([[0.9, 0.15, 0.15], [0.15, 0.8, 0.2], [0.2, 0.3, 0.95], [0.9, 0.85, 0.15]])


def shapes(count: int, seed: int = 0, noise: float = 0.05) -> Samples:
    """Questions about pictures, after CLEVR (Johnson et al. 2017): which colour has a shape, which shape a colour?

    A picture is a grid of 4 x 4 cells of 8 x 8 pixels. Three objects stand in three of them, of three of the
    four shapes and three of the four colours, so a word names one object, and what the other two are leaves two
    answers. "what colour is the single circle" is answered by the colour of the circle, "which shape has the red
    thing" by the shape of the red one: 8 classes. The question alone allows an accuracy of 1/4, and the picture alone
    1/6.

    The evidence is the word that names the object (and, of the text, the one that names what is asked for: "colour" or
    "shape") and the object's cell. The naming word and the cell decide only together. The groups are the object's
    colour, plus 4 where its shape is asked for.

    Args:
        count: Number of samples, at least 1.
        seed: Seed of the samples.
        noise: Standard deviation of the noise on each pixel; pixels are 0 to 1 without it.

    Returns:
        Samples of the modalities `question`, ids (N, 6), and `image`, (N, 3, 32, 32).

    Raises:
        UserError: The count or the seed is too small.
    """
    generator = generator_of(count, seed)
    picture, shape, colour, cell = _pictures(generator, count, noise)
    asked, about_shape = drawn(generator, count, OBJECTS), drawn(generator, count, 2)
    form, tint, place = (of.gather(1, asked[:, None])[:, 0] for of in (shape, colour, cell))
    first = torch.tensor([_ID["what"], _ID["which"]])[drawn(generator, count, 2)]
    verb = torch.tensor([_ID["is"], _ID["has"]])[drawn(generator, count, 2)]
    topic = torch.where(about_shape == 1, _ID["shape"], _ID["colour"])
    before = torch.where(about_shape == 1, _ID["red"] + tint, _ID["single"])
    last = torch.where(about_shape == 1, _ID["thing"], _ID["circle"] + form)
    question = torch.stack([first, topic, verb, torch.full((count,), _ID["the"]), before, last], dim=1)
    named, there = marked(5 - about_shape, QUESTION), marked(place, GRID**2)
    return Samples(
        {"question": question, "image": picture},
        torch.where(about_shape == 1, len(COLOURS) + form, tint),
        (*COLOURS, *SHAPES),
        _kinds("question", "<mask>"),
        {"question": named | marked(torch.ones_like(place), QUESTION), "image": there},
        {("question", "image"): named[:, :, None] & there[:, None]},
        tint + len(COLOURS) * about_shape,
    )


def captions(count: int, seed: int = 0, noise: float = 0.05) -> Samples:
    """Pictures with captions that fit or nearly fit, for retrieval: "a red circle and a blue square".

    Pictures are those of `shapes`. A caption names two of a picture's objects. In every second sample it is wrong in
    one word: a colour or a shape is another one, so that no object is as it says. The classes are "fits" and "differs".
    The groups are the kind of the wrong word: 0 for none, 1 for a colour, 2 for a shape.

    The evidence is the four words that name the two objects, and their cells; a word and the cell of its object decide
    together.

    Args:
        count: Number of samples, at least 1.
        seed: Seed of the samples.
        noise: See `shapes`.

    Returns:
        Samples of the modalities `caption`, ids (N, 7), and `image`, (N, 3, 32, 32).

    Raises:
        UserError: The count or the seed is too small.
    """
    generator = generator_of(count, seed)
    picture, shape, colour, cell = _pictures(generator, count, noise)
    told = orders(generator, count, OBJECTS)[:, :2]  # the two objects
    forms, tints, places = (of.gather(1, told) for of in (shape, colour, cell))
    wrong = torch.arange(count) % 2  # 1: one word is wrong
    which, side = drawn(generator, count, 2), drawn(generator, count, 2)
    step = 1 + drawn(generator, count, len(SHAPES) - 1)
    rows = torch.arange(count)
    tints[rows, side] = (tints[rows, side] + wrong * (1 - which) * step) % len(COLOURS)
    forms[rows, side] = (forms[rows, side] + wrong * which * step) % len(SHAPES)
    word = {name: torch.full((count,), _ID[name]) for name in ("a", "and")}
    named = [_ID["red"] + tints, _ID["circle"] + forms]
    columns = [word["a"], named[0][:, 0], named[1][:, 0], word["and"], word["a"], named[0][:, 1], named[1][:, 1]]
    at = torch.tensor([[1, 2], [5, 6]])  # of the words of each object
    pairs = torch.stack(
        [marked(at[k].expand(count, 2), CAPTION)[:, :, None] & marked(places[:, k], GRID**2)[:, None] for k in range(2)]
    ).any(0)
    return Samples(
        {"caption": torch.stack(columns, dim=1), "image": picture},
        wrong,
        ("fits", "differs"),
        _kinds("caption", "a"),
        {"caption": pairs.any(2), "image": pairs.any(1)},
        {("caption", "image"): pairs},
        wrong * (1 + which),
    )


def cells(count: int, seed: int = 0, noise: float = 0.05) -> tuple[Tensor, Tensor]:
    """Single cells of pictures, to teach a network what it may see, as networks for CLEVR see through one of ImageNet.

    Args:
        count: Number of cells, at least 1.
        seed: Seed of the cells.
        noise: See `shapes`.

    Returns:
        Pixels (N, 3, 8, 8), and what each shows, (N,) int64: 0 for nothing, else 1 + 4 · shape + colour.

    Raises:
        UserError: The count or the seed is too small.
    """
    generator = generator_of(count, seed)
    picture, shape, colour, cell = _pictures(generator, -(-count // (2 * OBJECTS)), noise)
    label = torch.zeros(len(picture), GRID**2, dtype=torch.int64)
    label.scatter_(1, cell, 1 + len(COLOURS) * shape + colour)
    cut = picture.unfold(2, CELL, CELL).unfold(3, CELL, CELL)  # (N, 3, 4, 4, 8, 8)
    cut = cut.permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
    order = label.argsort(dim=1, descending=True)[:, : 2 * OBJECTS]  # objects, and as many empty cells
    taken = cut.gather(1, order[:, :, None, None, None].expand(-1, -1, *cut.shape[2:]))
    return taken.flatten(0, 1)[:count], label.gather(1, order).flatten()[:count]


def _kinds(text: str, instead: str) -> dict[str, Kind]:
    """Words, replaced by the word `instead`, and the cells of the grid, replaced by an empty one."""
    words = Kind("tokens", vocabulary=WORDS, baseline=_ID[instead])
    return {text: words, "image": Kind("image", blocks=(GRID, GRID), coarse=(GRID, GRID), baseline=GREY)}


def _pictures(generator: torch.Generator, count: int, noise: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pictures (N, 3, 32, 32), and the shape, the colour and the cell of each of their three objects, (N, 3)."""
    sizes = (len(SHAPES), len(COLOURS), GRID**2)
    shape, colour, cell = (orders(generator, count, size)[:, :OBJECTS] for size in sizes)
    pixels = torch.full((count, GRID, GRID, CELL, CELL, 3), GREY)
    masks, rows = _masks(), torch.arange(count)
    for k in range(OBJECTS):
        shifted = masks[shape[:, k], drawn(generator, count, 9)]  # (N, 8, 8)
        shine = 0.8 + 0.2 * torch.rand(count, 1, 1, 1, generator=generator)
        drawing = torch.where(shifted[..., None], _RGB[colour[:, k]][:, None, None] * shine, torch.tensor(GREY))
        pixels[rows, cell[:, k] // GRID, cell[:, k] % GRID] = drawing
    picture = pixels.permute(0, 5, 1, 3, 2, 4).reshape(count, 3, GRID * CELL, GRID * CELL)
    return picture + noise * torch.randn(picture.shape, generator=generator), shape, colour, cell


def _masks() -> Tensor:
    """Each shape of 6 x 6 pixels at its 9 places in a cell, boolean (3, 9, 8, 8)."""
    y, x = torch.meshgrid(torch.arange(6) - 2.5, torch.arange(6) - 2.5, indexing="ij")
    square, cross = torch.ones(6, 6, dtype=torch.bool), (x.abs() < 1) | (y.abs() < 1)
    forms = torch.stack([x**2 + y**2 <= 7, square, x.abs() <= (y + 2.5) / 2, cross])
    masks = torch.zeros(len(SHAPES), 9, CELL, CELL, dtype=torch.bool)
    for place in range(9):
        top, left = place // 3, place % 3
        masks[:, place, top : top + 6, left : left + 6] = forms
    return masks
