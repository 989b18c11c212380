"""Writing a swapped config: its source, the difference to its base, reading it back."""
