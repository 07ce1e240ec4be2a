"""The run itself: loop, schedule, checkpoint, logging."""
