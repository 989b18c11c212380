"""Own data: reading it, converting what has to be, and a config that trains on it."""
