"""What can be done with configs, checkpoints and logs; the scripts in tools/ call it."""
