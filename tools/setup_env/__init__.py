"""Builds the pinned environments; `make setup` runs it with any Python from 3.8 on."""
