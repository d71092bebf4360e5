"""Training items from the store against the two usual ways without one, as ratios of CPU time a clip in one process.

- media: the clip's file is opened with PyAV at each access and decoded up to the last frame that is needed.
- OGM-GE: as its public code does, a JPEG file a frame is opened with PIL and transformed with torchvision, and the WAV
  file is read, resampled and transformed with librosa. The files are made beforehand and lie in the page cache.
- stored rate, where the recipe resamples (CREMA-D): the store's waveform is resampled beforehand, into int16. That is
  not the recipe's input (its rounding shows above 8 kHz); it says what resampling at each access costs.
- raw, and raw + spectrogram where nothing random precedes it: the store converted with `decode.frames: raw` and
  `decode.spectrogram: true`. Its frames are those of the JPEG files.

All three augment alike and make the same shapes (OGM-GE's spectrogram is never a mel one). They take turns on parts of
the clips, with one thread, for a loader process has no more. It is CPU time, of which other processes take none; no
variant waits for a disk. Prints a table and one JSON line a data set.

    python -m benchmarks.loader [--data crema-d crema-d-256 grid] [--clips 64] [--blocks 8]
"""

import argparse
import copy
import math
import sys
import tempfile
import time
import wave
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import av
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from amr.datamodules import Clips
from amr.datamodules.spectra import resampled
from amr.datamodules.store.media import Clip, decode
from amr.datamodules.transforms import VideoTransform
from amr.datamodules.transforms.spectrograms import kept_options
from benchmarks.common import Data, clips, machine, quiet, report, spread

try:
    import librosa
except ImportError:
    sys.exit(
        "benchmarks.loader compares with librosa, which is not installed: .venv/bin/uv pip install 'amr-fusion[bench]'"
    )


T: Any = v2  # its names are not marked as exported


def pixels(video: VideoTransform) -> list[Any]:
    """The public transforms that do what a VideoTransform does, from uint8 frames to floats."""
    size = [video.size, video.size] if isinstance(video.size, int) else list(video.size)
    if video.augment == "resized_crop":
        steps: list[Any] = [T.RandomResizedCrop(size)]
    else:
        steps = [T.Resize(size), T.RandomCrop(size, padding=video.shift, padding_mode="edge")]
    mean, std = (list(v) if isinstance(v, tuple) else [v] for v in (video.mean, video.std))
    return [*steps, T.RandomHorizontalFlip(), T.ToDtype(torch.float32, scale=True), T.Normalize(mean, std)]


def from_media(module: Clips) -> Callable[[Clip], dict[str, Tensor]]:
    """Reads an item from the clip's file."""
    transform = T.Compose(pixels(module.video))
    options, count, first = module.decode, module.video.frames, module.video.pick == "first"
    step = 25 / options.fps if options.fps else 1.0

    def read(clip: Clip) -> dict[str, Tensor]:
        path = str(module.root / clip.files["video"])
        start, end = clip.start or 0.0, clip.end or math.inf
        with av.open(path) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            frames = []
            for frame in container.decode(stream):
                if float(frame.time or 0) >= end:
                    break
                if float(frame.time or 0) >= start:
                    frames.append(frame)
                if first and len(frames) > (count - 0.5) * step:
                    break
        if options.fps:  # those in the middle of each 1/fps s
            frames = [frames[int((i + 0.5) * step)] for i in range(round(len(frames) / step))]
        within = torch.arange(count) if first else (torch.arange(count) + torch.rand(count)) * (len(frames) / count)
        places = within.int().tolist()
        arrays = [frames[i].to_ndarray(format="gray" if module.video.grayscale else "rgb24") for i in places]
        if options.crop:
            top, left, height, width = options.crop
            arrays = [a[top : top + height, left : left + width] for a in arrays]
        images = torch.from_numpy(np.stack(arrays))
        images = images[:, None] if module.video.grayscale else images.permute(0, 3, 1, 2)
        video = torch.stack([transform(image) for image in images]) if module.video.per_frame else transform(images)
        resampler = av.AudioResampler(format="s16", layout="mono", rate=options.sample_rate)
        chunks: list[NDArray[np.int16]] = []
        with av.open(path) as container:
            for sound in container.decode(container.streams.audio[0]):
                if float(sound.time or 0) >= end:
                    break
                chunks += [out.to_ndarray()[0] for out in resampler.resample(sound)]
        samples = np.concatenate(chunks)[round(start * options.sample_rate) :]
        if clip.end:
            samples = samples[: round((end - start) * options.sample_rate)]
        return {"audio": module.audio(samples, options.sample_rate, train=True), "video": video}

    return read


def as_ogm_ge(module: Clips, folder: Path) -> Callable[[Clip], dict[str, Tensor]]:
    """Writes the clips' frames, in full size, and sound as image and WAV files, and reads an item from these."""
    options = replace(module.decode, size=None, sample_rate=16000)  # CREMA-D's and GRID's rate
    for clip in module.clips:
        data = decode(clip, module.root, options)
        assert data.frames is not None
        assert data.waveform is not None
        (folder / clip.id).mkdir(parents=True)
        for i, frame in enumerate(data.frames):
            (folder / clip.id / f"{i:05d}.jpg").write_bytes(frame)
        with wave.open(str(folder / f"{clip.id}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16000)
            file.writeframes(data.waveform.tobytes())
    *geometry, scale, normalise = pixels(module.video)
    transform = T.Compose([*geometry, T.PILToTensor(), scale, normalise])
    audio, rate, count = module.audio, module.audio.rate(module.decode.sample_rate), module.video.frames
    length = round(audio.seconds * rate)

    def read(clip: Clip) -> dict[str, Tensor]:
        samples, _ = librosa.load(folder / f"{clip.id}.wav", sr=rate)
        samples = np.tile(samples, 3)[:length]
        samples[samples > 1.0] = 1.0
        samples[samples < -1.0] = -1.0
        spectrogram = librosa.stft(samples, n_fft=audio.n_fft, hop_length=audio.hop_length)
        spectrogram = np.log(np.abs(spectrogram) + 1e-7)
        names = sorted(path.name for path in (folder / clip.id).iterdir())
        if module.video.pick == "first":
            places = np.arange(count)
        else:
            places = np.sort(np.random.default_rng().choice(len(names), count, replace=len(names) < count))
        mode = "L" if module.video.grayscale else "RGB"
        images = [transform(Image.open(folder / clip.id / names[i]).convert(mode)) for i in places]
        return {"audio": torch.from_numpy(spectrogram)[None], "video": torch.stack(images)}

    return read


class AtRate:
    """A store whose waveforms are at the transform's rate already, in int16, held in memory.

    Args:
        module: The clips.
    """

    def __init__(self, module: Clips) -> None:
        self.store, rate, to = module._clip_store, module.decode.sample_rate, module.audio.rate(0)
        self.held = {}
        for clip in module.clips:
            wave = resampled(self.store.get(clip.id)["audio"].astype(np.float32) / 32768, rate, to)
            self.held[clip.id] = (wave * 32768).round().clip(-32768, 32767).astype(np.int16)

    def get(self, id: str) -> dict[str, Any]:
        """A clip's data."""
        return {**self.store.get(id), "audio": self.held[id]}


def at_stored_rate(module: Clips, dataset: Any) -> Any:
    """The dataset, over a store of the input's rate."""
    other = copy.copy(dataset)
    other.store = AtRate(module)
    transform = replace(module.audio, sample_rate=None)
    other.transforms = {**dataset.transforms, "audio": partial(transform, sample_rate=module.audio.rate(0))}
    return other


def converted(module: Clips, folder: Path, **decode: Any) -> Any:
    """The training items of the store, converted to other `decode` options."""
    other = copy.copy(module)
    other.decode, other.store, other._usable = replace(module.decode, **decode), folder, None
    other._kept = kept_options(other.decode, other.audio)
    other.prepare(convert=module.store)
    other.setup()
    return other.train_dataloader().dataset


def measure(data: Data, count: int, blocks: int) -> dict[str, Any]:
    """Times the variants on one data set."""
    with tempfile.TemporaryDirectory() as name:
        module = clips(data, count, Path(name), num_workers=0)
        dataset = module.train_dataloader().dataset
        index = {clip.id: i for i, clip in enumerate(dataset.clips)}  # type: ignore[attr-defined]
        variants: dict[str, Callable[[Clip], Any]] = {
            "store": lambda clip: dataset[(0, index[clip.id])],
            "media": from_media(module),
            "ogm_ge": as_ogm_ge(module, Path(name) / "files"),
        }
        if module.audio.sample_rate is not None:
            ready = at_stored_rate(module, dataset)
            variants["stored_rate"] = lambda clip: ready[index[clip.id]]
        raw = converted(module, Path(name) / "raw", frames="raw")
        variants["raw"] = lambda clip: raw[(0, index[clip.id])]
        if module.audio.crop == "first" and not module.audio.time_shift_ms:
            both = converted(module, Path(name) / "both", frames="raw", spectrogram=True)
            variants["raw_spectrogram"] = lambda clip: both[(0, index[clip.id])]
        for read in variants.values():  # the first call of each builds filters, windows and caches
            read(module.clips[0])
        seconds: dict[str, list[float]] = {variant: [] for variant in variants}
        for block in range(blocks):
            part = module.clips[block::blocks]
            for variant in list(variants)[:: 1 if block % 2 == 0 else -1]:
                start = time.process_time()
                for clip in part:
                    variants[variant](clip)
                seconds[variant].append((time.process_time() - start) / len(part))
    result: dict[str, Any] = {"benchmark": "loader", "data": data, "machine": machine("cpu"), "clips": count}
    for variant in variants:
        result |= spread(f"{variant}_ms", [1000 * s for s in seconds[variant]])
    for other in ("media", "ogm_ge"):
        ratios = [b / a for a, b in zip(seconds["store"], seconds[other], strict=True)]
        result |= spread(f"{other}_over_store", ratios, 2)
    for kind in ("raw", "raw_spectrogram"):
        if kind in seconds:
            for other in ("store", "ogm_ge"):
                ratios = [b / a for a, b in zip(seconds[kind], seconds[other], strict=True)]
                result |= spread(f"{other}_over_{kind}", ratios, 2)
    if "stored_rate" in seconds:
        ratios = [a / b for a, b in zip(seconds["store"], seconds["stored_rate"], strict=True)]
        result |= spread("store_over_stored_rate", ratios, 2)
    return result


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=get_args(Data), default=get_args(Data))
    parser.add_argument("--clips", type=int, default=64, help="of each data set")
    parser.add_argument("--blocks", type=int, default=8, help="parts of the clips, whose ratios are the spread")
    options = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    for data in options.data:
        report(measure(data, options.clips, options.blocks))


if __name__ == "__main__":
    main()
