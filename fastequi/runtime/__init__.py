"""How a run lives and survives: processes, checkpoints, signals, clocks; knows no method."""
