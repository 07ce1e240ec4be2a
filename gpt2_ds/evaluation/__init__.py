"""How good a model is: validation loss and samples."""
