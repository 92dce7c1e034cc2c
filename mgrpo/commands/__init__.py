"""Commands that train nothing: evaluate and sample. Each module holds its options and its function."""
