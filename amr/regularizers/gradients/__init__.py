"""Methods that change gradients, or take the steps in turn."""
