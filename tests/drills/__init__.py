"""Faults done to real runs, to see that nothing is lost: `python -m tests.drills`."""
