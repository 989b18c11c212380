"""What a training needs beside the network."""
