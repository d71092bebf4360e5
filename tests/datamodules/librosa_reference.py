"""What OGM-GE's CREMA-D loader makes of six real clips' sound, kept in librosa_reference.npz for the tests.

It was made once, with librosa 0.11.0, soxr 1.1.0 and NumPy 2.4.6 on x86-64, from CREMA-D (Cao et al. 2014, Open
Database License):

    pip install librosa && python tests/datamodules/librosa_reference.py ../shared/data/crema_d_sample/AudioWAV

The steps are those of github.com/GeWu-Lab/OGM-GE_CVPR2022, dataset/CramedDataset.py. Every fourth step in time is kept
and the two last ones, all 257 rows, in steps of 1/2000.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FILE = Path(__file__).with_suffix(".npz")
STEP = 1 / 2000
COLUMNS = [*range(0, 184, 4), 186, 187]


def load() -> dict[str, NDArray[np.float64]]:
    """Log spectrograms by clip id, (257, len(COLUMNS)), exact to STEP / 2."""
    with np.load(FILE) as file:
        return {name: file[name] * STEP for name in file.files}


def _spectrogram(path: Path) -> Any:
    import librosa

    samples, _ = librosa.load(path, sr=22050, mono=True)
    tiled = np.tile(samples, 3)[: 3 * 22050].clip(-1, 1)
    return np.log(np.abs(librosa.stft(tiled, n_fft=512, hop_length=353)) + 1e-7)


if __name__ == "__main__":
    made = {path.stem: _spectrogram(path)[:, COLUMNS] for path in sorted(Path(sys.argv[1]).glob("*.wav"))}
    np.savez_compressed(FILE, **{name: np.round(x / STEP).astype(np.int16) for name, x in made.items()})
