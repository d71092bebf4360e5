"""Methods that change what the head or the classifier sees, or the head itself."""
