"""Work of `amr analyze`: every analysis of a checkpoint, into a folder from which the site is made."""
