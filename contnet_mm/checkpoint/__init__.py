"""Checkpoint files in and out, safely, and the names of the tensors in them."""
