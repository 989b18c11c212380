"""Data sets: checking them, and making those of the demo."""
