"""Running and surviving: processes, checkpoints, signals, clocks; independent of the method."""
