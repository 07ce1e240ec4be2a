"""What a run costs on paper: memory, speed, time, money."""
