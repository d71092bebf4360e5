"""Methods that act between epochs: they choose clips, or look at whole splits."""
