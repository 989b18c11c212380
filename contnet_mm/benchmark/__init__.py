"""Timing of backbones side by side: what ``tools/benchmark.py`` is made of."""
