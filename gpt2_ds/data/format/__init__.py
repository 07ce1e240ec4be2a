"""What a dataset is on disk."""
