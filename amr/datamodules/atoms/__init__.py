"""Atoms: the pieces of one modality's input that are explained, and kept or replaced together.

`Kind` says of a modality what its inputs are; the functions make the atoms of each kind by themselves.
"""

from amr.datamodules.atoms.baselines import baseline_of
from amr.datamodules.atoms.blocks import (
    column_atoms,
    flat_atoms,
    patch_atoms,
    series_atoms,
    spectrogram_atoms,
    vector_atoms,
    video_atoms,
    waveform_atoms,
)
from amr.datamodules.atoms.kinds import Kind, as_kind
from amr.datamodules.atoms.partition import AXES, Atoms, ClipAtoms
from amr.datamodules.atoms.words import segment_atoms, token_atoms, words_of

__all__ = [
    "AXES",
    "Atoms",
    "ClipAtoms",
    "Kind",
    "as_kind",
    "baseline_of",
    "column_atoms",
    "flat_atoms",
    "patch_atoms",
    "segment_atoms",
    "series_atoms",
    "spectrogram_atoms",
    "token_atoms",
    "vector_atoms",
    "video_atoms",
    "waveform_atoms",
    "words_of",
]
