"""Metrics of a split. Those of how a model uses its modalities are in `modalities`, their intervals in `bootstrap`."""

from amr.metrics.split import split_metrics

__all__ = ["split_metrics"]
