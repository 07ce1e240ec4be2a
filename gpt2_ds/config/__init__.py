"""What a run is: the recipe, the template, and every number that follows from them. No torch here."""
