"""The clip store: media decoded once, in shards. Nothing here knows of models, and nothing imports torch."""
