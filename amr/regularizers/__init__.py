"""Training methods: each is one file, a pure function and a thin class of hooks."""

from amr.regularizers.amr import AMR
from amr.regularizers.base import Regularizer, Step
from amr.regularizers.composite import Composite
from amr.regularizers.dropout import Dropout
from amr.regularizers.modality_dropout import ModalityDropout

__all__ = ["AMR", "Composite", "Dropout", "ModalityDropout", "Regularizer", "Step"]
