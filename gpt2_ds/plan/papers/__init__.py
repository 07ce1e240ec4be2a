"""The papers' own numbers, and ours beside them."""
