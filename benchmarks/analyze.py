"""CPU seconds that an explained clip takes, by map, with two ResNet-18s on inputs of real size.

The inputs are those of CREMA-D's and VGGSound's recipes (made clips), the maps those of `amr analyze`, with one thread.
The first clip of two is explained; the network is not trained, which changes no count. `row` is one row of an encoder
without a gradient, in a batch of eight. Prints a table and one JSON line a data set; ten minutes in all.

    python -m benchmarks.analyze [--data crema-d vggsound] [--samples 160] [--classes 3]
"""

import argparse
import resource
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from amr.encoders import ResNetEncoder
from amr.fusion import Concat
from amr.model import FusionModel, encode_alone
from amr.multiviz.analysis.analysis import Analysis
from amr.multiviz.analysis.cost import rows_per_clip
from amr.multiviz.analysis.maps import explain
from amr.multiviz.analysis.plan import Plan
from benchmarks.common import clips, machine, quiet, report

Shaped = Literal["crema-d", "vggsound"]


class Timed(Analysis):
    """An analysis that keeps the CPU seconds of each part of a clip's maps."""

    def start(self) -> None:
        """From now on."""
        self.spent: dict[str, float] = defaultdict(float)
        self._part, self._since = "occlusion, pictures", time.process_time()

    def at(self, part: str) -> None:
        """Ends a part and begins another."""
        now = time.process_time()
        self.spent[self._part] += now - self._since
        self._part, self._since = part.split(" of ")[0], now


def measure(data: Shaped, samples: int, classes: int) -> dict[str, Any]:
    """Times the maps of one clip."""
    torch.manual_seed(0)
    encoders = {"audio": ResNetEncoder(in_channels=1), "video": ResNetEncoder()}
    model = FusionModel(encoders, Concat(dict.fromkeys(encoders, 512), 6)).eval()
    with tempfile.TemporaryDirectory() as name:
        module = clips(data, 4, Path(name), num_workers=0, batch_size=4)
        plan = Plan(Path("none"), Path(name) / "out", split="train", clips=2, classes=classes, samples=samples, units=0)
        plan.out.mkdir()
        analysis = Timed(plan, model, module)
        analysis.unfit  # noqa: B018  # tried on the first clip of all
        analysis.start()
        explain(analysis, analysis.chosen[0])
        analysis.at("")
        inputs = {m: x.expand(8, *x.shape[1:]) for m, x in analysis.inputs(analysis.chosen[:1]).items()}
        row = {}
        with torch.no_grad():
            for modality, x in inputs.items():
                encode_alone(model, modality, x)
                began = time.process_time()
                encode_alone(model, modality, x)
                row[modality] = (time.process_time() - began) / 8
        rows = rows_per_clip(analysis)["clip"][0]
    result: dict[str, Any] = {"benchmark": "analyze", "data": data, "machine": machine("cpu")}
    result |= {"samples": samples, "classes": classes, "s": round(sum(analysis.spent.values()), 1)}
    result |= {f"s, {name}": round(seconds, 1) for name, seconds in analysis.spent.items()}
    result |= {f"rows of {m}, a gradient counted as 3, a further one as 2": count for m, count in rows.items()}
    result |= {f"row of {m}, s": round(seconds, 4) for m, seconds in row.items()}
    return {**result, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=get_args(Shaped), default=get_args(Shaped))
    parser.add_argument("--samples", type=int, default=160)
    parser.add_argument("--classes", type=int, default=3)
    options = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    for data in options.data:
        report(measure(data, options.samples, options.classes))


if __name__ == "__main__":
    main()
