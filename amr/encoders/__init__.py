"""Encoders: one modality in, one encoding out. A new one is a file here with a subclass of `Encoder`."""

from amr.encoders.base import Encoder
from amr.encoders.cnn import SmallCNN, SmallFrameCNN
from amr.encoders.mlp import MLPEncoder, TableEncoder
from amr.encoders.resnet import ResNetEncoder
from amr.encoders.series import SeriesEncoder
from amr.encoders.spectrogram_transformer import SpectrogramTransformer
from amr.encoders.text import TextEncoder
from amr.encoders.video3d import Video3DEncoder
from amr.encoders.video_transformer import VideoTransformerEncoder
from amr.encoders.waveform import WaveformEncoder
from amr.encoders.weights import load_weights
from amr.encoders.wrapped import WrappedEncoder, as_encoder

__all__ = [
    "Encoder",
    "MLPEncoder",
    "ResNetEncoder",
    "SeriesEncoder",
    "SmallCNN",
    "SmallFrameCNN",
    "SpectrogramTransformer",
    "TableEncoder",
    "TextEncoder",
    "Video3DEncoder",
    "VideoTransformerEncoder",
    "WaveformEncoder",
    "WrappedEncoder",
    "as_encoder",
    "load_weights",
]
