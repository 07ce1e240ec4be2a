"""What a run will need: closed forms, no tensors."""
