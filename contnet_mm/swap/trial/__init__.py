"""Trying a swap: build the model of a config in small, train and test it for a step."""
