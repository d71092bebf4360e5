"""Audio-video classification that measures and controls how much each modality counts."""

__version__ = "0.1.0"
