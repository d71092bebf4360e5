"""Decodes damaged media, for `test_media_fuzz`: a process of its own, so that a crash or a hang is seen from outside.

    python fuzzed_media.py FOLDER TRIES

Prints each try before it begins, so that the last line names what ended the process.
"""

import random
import resource
import signal
import sys
from dataclasses import replace
from pathlib import Path

from amr.datamodules.store.media import MODALITIES, Clip, DecodeOptions, decode

LIMIT = 2 * 2**30  # bytes of memory
SECONDS = 30  # for one try


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, blanked, cut, repeated or put elsewhere; mostly near the beginning, where headers are."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at = rng.randrange(min(len(out), 600) if rng.random() < 0.5 else len(out))
        kind = rng.randrange(6)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", bytes(4), b"\0\0\0\1"))
        elif kind == 2:
            out[at : at + 40] = rng.randbytes(len(out[at : at + 40]))
        elif kind == 3 and len(out) > 200:
            del out[at : at + rng.randrange(1, 100)]
        elif kind == 4 and len(out) > 200:
            del out[max(at, 100) :]
        else:
            out[at:at] = out[at : at + rng.randrange(1, 200)]
    return bytes(out)


def main() -> None:
    """Decodes `TRIES` damaged copies of the files in `FOLDER`; raises what `decode` raises."""
    folder, tries = Path(sys.argv[1]), int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
    rng = random.Random(0)
    sources = sorted(path for path in folder.iterdir() if not path.name.startswith("damaged"))
    contents = {path: path.read_bytes() for path in sources}
    for number in range(tries):
        path = sources[number % len(sources)]
        target = folder / f"damaged{path.suffix}"
        target.write_bytes(damaged(contents[path], rng))
        window = rng.choice(((None, None), (0.5, 1.0), (40.0, 41.0)))
        print(number, path.name, window, flush=True)
        clip = Clip("x", "a", "train", dict.fromkeys(MODALITIES, Path(target.name)), *window)
        signal.alarm(SECONDS)
        decoded = decode(clip, folder, replace(DecodeOptions(fps=5), fps=rng.choice((None, 5.0))))
        signal.alarm(0)
        assert set(decoded.problems) <= set(MODALITIES)
        for modality, data in (("audio", decoded.waveform), ("video", decoded.frames)):
            assert (data is None) == (modality in decoded.problems)
        assert sum(map(len, decoded.frames or [])) < 100 * 2**20
        assert all("\n" not in reason for reason in decoded.problems.values())
    print("done")


if __name__ == "__main__":
    main()
