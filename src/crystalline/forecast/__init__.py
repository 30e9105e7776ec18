"""What a training will take, computed before it starts: memory, speed, time, disk; what fits."""
