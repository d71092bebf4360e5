"""What `amr analyze` does: every analysis of a checkpoint, to a folder that the site is made from."""
