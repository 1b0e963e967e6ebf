"""Benchmarks: declared cases, timed side by side with their peers. `python -m bench --list`."""
