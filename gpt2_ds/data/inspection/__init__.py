"""Looking into a dataset."""
