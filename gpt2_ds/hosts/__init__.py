"""Processes, launchers and machines."""
