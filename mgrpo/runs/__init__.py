"""What runs write and read back: their folders, checkpoints and stored models, logs, where results came from."""
