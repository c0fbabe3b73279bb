"""Shards -> embeddings. See docs/architecture.md for the rooms and the path of the data."""
