"""What a network sees: receptive fields, attention, class activation."""
