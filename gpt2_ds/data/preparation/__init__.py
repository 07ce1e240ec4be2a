"""Text to datasets: what `launch/prepare_data.py` does. Not needed in training."""
