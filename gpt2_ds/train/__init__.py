"""The run itself: set-up, loop, validation, replay, benchmark."""
