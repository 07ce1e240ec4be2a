"""Saving, and resuming from what was saved."""
