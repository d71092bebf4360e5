"""Speed, each figure a ratio measured side by side in one process."""
