"""What a run is: recipe, template, and every number that follows from them. Never imports torch."""
