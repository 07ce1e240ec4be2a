"""What an engine holds, read and written at any stage and number of ranks."""
