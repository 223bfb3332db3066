"""Training: the loop, the optimiser, checkpoints; run.py is the one module that knows all the others."""
