"""Measurements, each a ratio to a peer or a bare baseline in the same run: `python -m launch.bench NAME`."""
