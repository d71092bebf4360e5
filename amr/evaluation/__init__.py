"""How good a model is and how it uses its modalities: on a split, with intervals, under corruption."""
