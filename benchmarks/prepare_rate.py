"""prepare's rate a core, as a ratio to bare PyAV decoding of the same files (d).

VGGSound's settings on clips made in its image: ten seconds, 640 x 360 pixels, 25 frames a second, x264's medium preset,
AAC sound at 44.1 kHz.
Bare decoding demuxes a file once and decodes every packet of both streams, on one thread, and drops what comes out;
prepare also resamples, picks and scales frames, writes JPEGs, looks for silence and stills, and writes the shard. Both
run on the same files in turn, in one process; seconds are the process's own CPU time, so that other work on the machine
does not count. Prints a table and one JSON line.

    python -m benchmarks.prepare_rate [--clips 12] [--blocks 5]
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av

from amr.datamodules.store.media import Clip, DecodeOptions
from amr.datamodules.store.prepare import _prepare_shard
from benchmarks.common import machine, report, spread, vggsound

OPTIONS = DecodeOptions(sample_rate=16000, fps=1.0, size=256)  # configs/data/vggsound.yaml


def bare(paths: list[Path]) -> None:
    """Decode everything, keep nothing."""
    for path in paths:
        with av.open(str(path)) as container:
            for stream in container.streams:
                stream.codec_context.thread_count = 1
            for packet in container.demux():
                packet.decode()


def seconds(work: Callable[[], object]) -> float:
    """CPU time of a piece of work in this process."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--blocks", type=int, default=5, help="pairs of blocks, bare decoding and prepare in turn")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = vggsound(folder, options.clips)
        clips = [Clip(p.stem, "a", "train", dict.fromkeys(("audio", "video"), Path(p.name))) for p in paths]
        shard = folder / "shard-00000.arrow"
        bare(paths)
        ratios, rates = [], []
        for block in range(options.blocks):
            times = {}
            for kind in ("bare", "ours") if block % 2 == 0 else ("ours", "bare"):
                shard.unlink(missing_ok=True)
                ours = kind == "ours"
                times[kind] = seconds(
                    lambda ours=ours: _prepare_shard(shard, "key", clips, folder, OPTIONS) if ours else bare(paths)  # type: ignore[misc]
                )
            ratios.append(times["bare"] / times["ours"])
            rates.append(len(paths) / times["ours"])
        result = {
            "benchmark": "prepare_rate",
            "machine": machine("cpu"),
            "av": av.__version__,
            "clips": options.clips,
            **spread("clips_a_core_second", rates, 2),
            **spread("ratio_to_bare", ratios),
        }
    report(result)


if __name__ == "__main__":
    main()
