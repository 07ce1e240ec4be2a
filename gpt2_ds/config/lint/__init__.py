"""What is known to be wrong in a recipe with a template, before a run."""
