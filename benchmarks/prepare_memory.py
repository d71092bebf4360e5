"""Memory of a worker of prepare that is given long clips.

Clips of ten minutes, 640 x 360 pixels, 25 frames a second, with sound: a made clip of ten seconds sixty times over.
One process prepares a group of them, as a worker does; what is told is the largest memory that it ever held (the
kernel's VmHWM, without the pages of files), beside that of the same process before. Prints a table and one JSON line.

    python -m benchmarks.prepare_memory [--clips 64] [--fps 1] [--size 256]
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import av

from benchmarks.common import machine, report, vggsound

TIMES = 60
WORKER = """
import json, sys
from pathlib import Path
from amr.datamodules.store.media import Clip, DecodeOptions
from amr.datamodules.store.prepare import _prepare_shard

def peak():
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) / 1024

folder, count, options = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
clips = [Clip(f"{i:04d}", "a", "train", dict.fromkeys(("audio", "video"), Path("long.mp4"))) for i in range(count)]
before = peak()
_prepare_shard(folder / "shard-00000.arrow", "key", clips, folder, DecodeOptions(**options))
shards = list(folder.glob("shard-*.arrow"))
size = sum(path.stat().st_size for path in shards)
print(json.dumps({"mib_before": before, "mib_peak": peak(), "shards": len(shards), "mib_stored": size / 2**20}))
"""


def lengthen(short: Path, long: Path) -> None:
    """The clip `TIMES` times over, without decoding it."""
    with av.open(str(short)) as source, av.open(str(long), "w") as target:
        streams = {s.index: target.add_stream_from_template(s) for s in source.streams}
        packets = [packet for packet in source.demux() if packet.dts is not None]
        for time in range(TIMES):
            for packet in packets:
                assert packet.pts is not None
                assert packet.dts is not None
                shift = round(10.2 / packet.time_base)  # the sound is a little longer than the picture
                copy = av.Packet(bytes(packet))
                copy.pts, copy.dts = packet.pts + time * shift, packet.dts + time * shift
                copy.time_base, copy.duration, copy.is_keyframe = packet.time_base, packet.duration, packet.is_keyframe
                copy.stream = streams[packet.stream.index]
                target.mux(copy)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--fps", type=float, default=1.0, help="0: every frame")
    parser.add_argument("--size", type=int, default=256, help="0: the native size")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lengthen(vggsound(folder / "short", 1)[0], folder / "long.mp4")
        decode = json.dumps({"fps": options.fps or None, "size": options.size or None})
        command = [sys.executable, "-c", WORKER, str(folder), str(options.clips), decode]
        said = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    found = {key: round(value) for key, value in said.items()}
    report({"benchmark": "prepare_memory", "machine": machine("cpu"), **vars(options), **found})


if __name__ == "__main__":
    main()
