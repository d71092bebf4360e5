"""Transforms from a clip's stored bytes to a network's input. Randomness is torch's; the caller seeds it."""

from amr.datamodules.transforms.audio import AudioTransform
from amr.datamodules.transforms.picture import Picture
from amr.datamodules.transforms.video import ChosenFrames, VideoTransform, View

__all__ = ["AudioTransform", "ChosenFrames", "Picture", "VideoTransform", "View"]
