"""Imported by the server that decoding processes are forked from: a stop request is for the trainer, which still needs
its batches.
"""

import signal

import senet.data.pillow  # noqa: F401  torch is slow to import: once, in the server

for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
