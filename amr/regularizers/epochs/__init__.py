"""What happens between epochs: the clips that a method chooses, and the methods that look at whole splits."""
