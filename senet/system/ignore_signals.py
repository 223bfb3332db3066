"""Imported by the server that workers are forked from: a stop request is for the process that still needs them."""

import signal

for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
