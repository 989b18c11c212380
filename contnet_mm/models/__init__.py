"""What a forward pass of the network goes through; knows torch and MMEngine alone."""
