"""What `fit`, `validate`, `test`, `predict` and `prepare` leave and say, and these commands as functions."""
