"""Makes docs/study/colours.csv: GRID's letters with the colour that was said just before as the label.

A sentence of GRID is command, colour, preposition, letter, digit, adverb, and a clip's name has a character of each:
`bbaf2n` is "bin blue at f two now". The window stays the letter's: it has the colour's end and what came of it, which
sound tells better than lips. With the window 0.4 s earlier, on the word itself, both know much.

    python docs/study/colours.py ../shared/data/grid/letters.csv
"""

import csv
import sys
from pathlib import Path

COLOURS = {"b": "blue", "g": "green", "r": "red", "w": "white"}


def colours(letters: Path) -> list[dict[str, str]]:
    """The letters' rows with the colour as label; clips, windows and splits are the same."""
    with letters.open(newline="") as file:
        return [{**row, "label": COLOURS[row["id"][1]]} for row in csv.DictReader(file)]


if __name__ == "__main__":
    listing = colours(Path(sys.argv[1]))
    with Path(__file__).with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, listing[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(listing)
