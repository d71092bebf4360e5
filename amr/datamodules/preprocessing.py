"""Describes the steps from a clip's file to a network's input, for programs that use a model outside of amr."""

from collections.abc import Mapping
from typing import Any

from amr.datamodules.base import ClipDataModule
from amr.datamodules.store.media import DecodeOptions
from amr.datamodules.transforms import AudioTransform, VideoTransform
from amr.utils.errors import UserError
from amr.utils.parser import OneLineParser


def preprocessing(section: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Each modality's input and the steps to it, those of evaluation; no clip and no listing is read.

    Args:
        section: The `data` section of a configuration.

    Returns:
        By modality: `shape` (without the batch), `axes`, `dtype`, `source` (what is decoded of a file) and `steps`, in
        order, each with its parameters.

    Raises:
        UserError: It is not a section of a `ClipDataModule`, the only one whose transforms are known.
    """
    parser = OneLineParser()
    parser.add_subclass_arguments(ClipDataModule, "data", required=True)
    try:
        init = parser.parse_object({"data": dict(section)}).as_dict()["data"]["init_args"]
    except UserError as error:
        raise UserError(f"data: {error}; export knows the inputs of subclasses of ClipDataModule") from error
    parts: dict[str, Any] = {"decode": DecodeOptions, "audio": AudioTransform, "video": VideoTransform}
    parser = OneLineParser()
    for key, part in parts.items():
        parser.add_class_arguments(part, key)
    made = parser.instantiate_classes(parser.parse_object({key: init[key] for key in parts if init.get(key)}))
    described = {"audio": _audio(made.audio, made.decode), "video": _video(made.video, made.decode)}
    names = init["modalities"] or [*described, *(["text"] if init["text"] else [])]
    if "text" in names:
        raise UserError("data.modalities: must not have 'text'; export describes sound and frames alone")
    return {name: described[name] for name in names}


def _audio(transform: AudioTransform, decode: DecodeOptions) -> dict[str, Any]:
    rate = transform.rate(decode.sample_rate)
    shape = transform.shape(decode.sample_rate)
    steps: list[dict[str, Any]] = [{"step": "scale", "divide_by": 32768}]
    if rate != decode.sample_rate:
        resample = {"from": decode.sample_rate, "to": rate, "by": "soxr, quality HQ, on float32, the whole clip"}
        steps.append({"step": "resample", **resample, "samples": "ceil(length * to / from)", "clamp": [-1, 1]})
    steps.append(
        {
            "step": "fit",
            "samples": round(transform.seconds * rate),
            "longer": {"first": "the first samples", "random": "the middle, from (length - samples) // 2 on"}[
                transform.crop
            ],
            "shorter": {"tile": "repeat from its beginning", "pad": "zeros behind"}[transform.fit],
        }
    )
    if transform.noise_snr_db is not None:
        steps.append({"step": "add white noise", "snr_db": transform.noise_snr_db, "power": "of the whole clip"})
    window = {
        "n_fft": transform.n_fft,
        "hop_length": transform.hop_length,
        "window": "hann, periodic",
        "centred": {
            "reflect": "n_fft // 2 samples reflected at both ends",
            "zeros": "n_fft // 2 zeros at both ends",
        }[transform.padding],
    }
    match transform.kind:
        case "log_stft":
            steps += [{"step": "spectrogram", **window, "power": 1, "dtype": "float64"}]
            steps.append({"step": "log", "add": transform.eps})
        case "log_psd":
            density: dict[str, Any] = {
                "n_fft": transform.n_fft,
                "hop_length": transform.hop_length,
                "sample_rate": rate,
            }
            density |= {"window": "tukey of 0.25, periodic", "each_window": "less its mean", "dtype": "float64"}
            steps += [{"step": "power spectral density", **density, "like": "scipy.signal.spectrogram"}]
            steps.append({"step": "log", "add": transform.eps})
        case "log_mel":
            mel = {"n_mels": transform.n_mels, "scale": "htk", "f_min": 0.0, "f_max": rate / 2, "norm": None}
            mel["sample_rate"] = rate
            steps += [{"step": "spectrogram", **window, "power": 2}, {"step": "mel", **mel}]
            steps.append({"step": "log", "add": transform.eps})
    if transform.normalise:
        steps.append(
            {"step": "normalise", "over": "the whole input", "deviation": "of n - 1", "add_to_deviation": 1e-5}
        )
    return {
        "shape": list(shape),
        "axes": ["channel", "sample"] if transform.kind == "waveform" else ["channel", "frequency", "time"],
        "dtype": "float32",
        "source": {"sample_rate": decode.sample_rate, "channels": "mono, by FFmpeg", "samples": "int16"},
        "steps": steps,
    }


def _video(transform: VideoTransform, decode: DecodeOptions) -> dict[str, Any]:
    shape = transform.shape()
    return {
        "shape": list(shape),
        "axes": ["frame", "channel", "height", "width"],
        "dtype": "float32",
        "source": {
            "frames_per_second": decode.fps,
            "crop_top_left_height_width": decode.crop,
            "shorter_side": decode.size,
            "stored_as": "uint8" if decode.frames == "raw" else f"JPEG, quality {decode.jpeg_quality}",
        },
        "steps": [
            {
                "step": "choose frames",
                "count": transform.frames,
                "index": {"segments": "floor((i + 0.5) * available / count)", "first": "min(i, available - 1)"}[
                    transform.pick
                ],
            },
            {"step": "colour", "channels": "luminance" if transform.grayscale else "RGB", "values": "uint8"},
            {"step": "resize", "height": shape[2], "width": shape[3], "by": "bilinear with antialiasing, on uint8"},
            {"step": "scale", "divide_by": 255},
            {"step": "normalise", "subtract": transform.mean, "divide_by": transform.std},
        ],
    }
