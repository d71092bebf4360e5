"""Transformers on raw waveforms, pretrained without labels on speech."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torchaudio.pipelines
from torch import Tensor, nn
from torchaudio.models import wav2vec2_model

from amr.encoders.base import Encoder
from amr.encoders.weights import load_weights
from amr.utils.errors import UserError


@dataclass(frozen=True)
class _Arch:
    """Options that define an architecture, with torchaudio's names, and the names of torchaudio's weights."""

    dim: int
    layers: int
    heads: int
    bundles: tuple[str, ...]
    extractor_mode: str = "layer_norm"
    conv_bias: bool = False
    norm_first: bool = True


_ARCHS = {
    "wav2vec2_base": _Arch(
        768,
        12,
        12,
        ("WAV2VEC2_BASE", "WAV2VEC2_ASR_BASE_10M", "WAV2VEC2_ASR_BASE_100H", "WAV2VEC2_ASR_BASE_960H"),
        extractor_mode="group_norm",
        norm_first=False,
    ),
    "wav2vec2_large": _Arch(
        1024,
        24,
        16,
        ("WAV2VEC2_LARGE", "WAV2VEC2_ASR_LARGE_10M", "WAV2VEC2_ASR_LARGE_100H", "WAV2VEC2_ASR_LARGE_960H"),
        extractor_mode="group_norm",
        norm_first=False,
    ),
    "wav2vec2_large_lv60k": _Arch(
        1024,
        24,
        16,
        (
            "WAV2VEC2_LARGE_LV60K",
            "WAV2VEC2_XLSR53",
            "WAV2VEC2_XLSR_300M",
            "WAV2VEC2_ASR_LARGE_LV60K_10M",
            "WAV2VEC2_ASR_LARGE_LV60K_100H",
            "WAV2VEC2_ASR_LARGE_LV60K_960H",
        ),
        conv_bias=True,
    ),
    "hubert_base": _Arch(768, 12, 12, ("HUBERT_BASE",), extractor_mode="group_norm", norm_first=False),
    "hubert_large": _Arch(1024, 24, 16, ("HUBERT_LARGE", "HUBERT_ASR_LARGE")),
    "hubert_xlarge": _Arch(1280, 48, 16, ("HUBERT_XLARGE", "HUBERT_ASR_XLARGE")),
}

_POS_CONV = "encoder.transformer.pos_conv_embed.conv"


class WaveformEncoder(Encoder):
    """torchaudio's wav2vec 2.0 (Baevski et al. 2020) or HuBERT (Hsu et al. 2021), up to its last layer.

    Input is a mono waveform at 16 kHz, (B, 1, samples), of 400 samples (25 ms) or more. The encoding has shape (B, D),
    averaged over time, or (B, T, D) without `pool`, where T = 1 + (samples - 400) // 320: a token every 20 ms. D is 768
    for base, 1024 for large and 1280 for xlarge.

    The large ones were pretrained on waveforms of mean 0 and standard deviation 1, and the base ones do not mind: leave
    the data's `audio.normalise` on.

    Args:
        arch: "wav2vec2_base", "wav2vec2_large", "wav2vec2_large_lv60k" (also XLSR's), "hubert_base", "hubert_large" or
            "hubert_xlarge".
        weights: None for a random initialization, else a local file with torchaudio's keys, or a name in
            `torchaudio.pipelines` such as "WAV2VEC2_BASE". Weights fine-tuned for speech recognition fit, too.
        freeze_features: Keep the convolutions below the transformer as they are, as is usual for fine-tuning.
        layers: Use the first so many transformer layers, 1 or more; None: all. Further ones in `weights` are left out.
        dropout: Dropout of the transformer, in [0, 1): embeddings, attention and feed-forward. Whole layers are never
            dropped: DDP waits for the gradient of each.
        pool: Average over time. False gives a token every 20 ms.

    Raises:
        UserError: An option has a value that is not allowed, or the weights do not fit.
    """

    min_samples = 400  # receptive field of the seven convolutions

    def __init__(
        self,
        arch: Literal[
            "wav2vec2_base", "wav2vec2_large", "wav2vec2_large_lv60k", "hubert_base", "hubert_large", "hubert_xlarge"
        ] = "wav2vec2_base",
        weights: str | None = None,
        freeze_features: bool = False,
        layers: int | None = None,
        dropout: float = 0.1,
        pool: bool = True,
    ) -> None:
        super().__init__()
        if arch not in _ARCHS:
            raise UserError(f"WaveformEncoder: arch={arch!r}: must be one of {', '.join(_ARCHS)}")
        options = _ARCHS[arch]
        layers = options.layers if layers is None else layers
        if not 1 <= layers <= options.layers:
            raise UserError(f"WaveformEncoder: layers={layers}: must be in 1 to {options.layers} for {arch}")
        if not 0 <= dropout < 1:
            raise UserError(f"WaveformEncoder: dropout={dropout}: must be in [0, 1)")
        self.out_dim = options.dim
        self.layers, self.pool = layers, pool
        self.net = wav2vec2_model(
            extractor_mode=options.extractor_mode,
            extractor_conv_layer_config=None,
            extractor_conv_bias=options.conv_bias,
            encoder_embed_dim=options.dim,
            encoder_projection_dropout=dropout,
            encoder_pos_conv_kernel=128,
            encoder_pos_conv_groups=16,
            encoder_num_layers=layers,
            encoder_num_heads=options.heads,
            encoder_attention_dropout=dropout,
            encoder_ff_interm_features=4 * options.dim,
            encoder_ff_interm_dropout=dropout,
            encoder_dropout=dropout,
            encoder_layer_norm_first=options.norm_first,
            encoder_layer_drop=-1.0,  # never: torchaudio drops a layer where a number in [0, 1) is <= this
            aux_num_out=None,
        )
        # The same without weight norm, which cannot be pickled.
        self.net.set_submodule(_POS_CONV, nn.Conv1d(options.dim, options.dim, 128, padding=64, groups=16))
        if weights is not None:
            load_weights(self.net, weights, _downloads(options.bundles), ignore="aux.", convert=self._convert)
        self.net.feature_extractor.requires_grad_(not freeze_features)

    def forward(self, x: Tensor) -> Tensor:
        """Encodes waveforms (B, 1, samples) to (B, D) or (B, T, D)."""
        if x.ndim != 3 or x.shape[1] != 1 or x.shape[2] < self.min_samples:
            raise UserError(
                f"WaveformEncoder: takes (B, 1, samples), at least {self.min_samples} samples (25 ms at 16 kHz; the "
                f"data's audio.kind is waveform), got shape {tuple(x.shape)}"
            )
        tokens: Tensor = self.net(x[:, 0])[0]
        return tokens.mean(dim=1) if self.pool else tokens

    def _convert(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The library's keys, old or new, to this net's: no layers beyond its own, the weight norm multiplied out."""
        beyond = tuple(f"encoder.transformer.layers.{i}." for i in range(self.layers, 48))
        state = {key: value for key, value in state.items() if not key.startswith(beyond)}
        for norm, direction in (
            ("weight_g", "weight_v"),
            ("parametrizations.weight.original0", "parametrizations.weight.original1"),
        ):
            keys = f"{_POS_CONV}.{norm}", f"{_POS_CONV}.{direction}"
            if all(key in state for key in keys):
                g, v = (state.pop(key) for key in keys)
                state[f"{_POS_CONV}.weight"] = torch._weight_norm(v, g, 2)
        return state


def _downloads(names: tuple[str, ...]) -> dict[str, Callable[[], Mapping[str, Tensor]]]:
    return {name: partial(_download, name) for name in names}


def _download(name: str) -> Mapping[str, Tensor]:
    """State dict of a model in torchaudio.pipelines."""
    model = getattr(torchaudio.pipelines, name).get_model()
    # Large models come in a wrapper that normalises the waveform, over the whole batch: the data does it by clip.
    state: Mapping[str, Tensor] = getattr(model, "model", model).state_dict()
    return state
