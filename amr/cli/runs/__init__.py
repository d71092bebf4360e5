"""Files and messages of `fit`, `validate`, `test`, `predict` and `prepare`, and these commands as functions."""
