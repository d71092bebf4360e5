"""What is found by name: configurations, modules that moved, the version."""
