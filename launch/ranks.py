"""Several ranks on this machine without a torchrun command: `--gpus N`, by torch's own elastic launcher."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import uuid

from senet.errors import UsageError
from senet.run.flags import limited


def add_flags(parser: argparse.ArgumentParser, restarts: bool = True) -> None:
    add = parser.add_argument_group("several GPUs of this machine (of several machines: torchrun)").add_argument
    add("--gpus", type=limited(int, "positive"), metavar="N", help="start N ranks, one a GPU")
    if restarts:
        again = "with --gpus: how often ranks that die are restarted (default: 0 times)"
        add("--restarts", type=limited(int, "not negative"), default=0, metavar="N", help=again)


def to_start(gpus: int | None) -> bool:
    """Return whether this process is to start ranks, and is none itself. Raises UsageError under torchrun."""
    if gpus is not None and "TORCHELASTIC_RUN_ID" in os.environ:
        raise UsageError(f"--gpus {gpus}: torchrun has started the ranks already; leave it out")
    return gpus is not None and gpus > 1


def start(module: str, words: list[str], ranks: int, restarts: int | None = None) -> int:
    """Run `python -m module WORDS` on so many ranks to its end, and return the exit code of the rank that failed first.

    A signal is passed on: the ranks save and stop. `words` may name the flags of `add_flags`, which are not passed on.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the ranks have the last word
    # As torchrun has it: more threads than cores make the ranks wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // ranks)))
    # As the program reads them, abbreviations too.
    mine = argparse.ArgumentParser(add_help=False)
    add_flags(mine, restarts is not None)
    _, others = mine.parse_known_args(words)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=restarts or 0,
        monitor_interval=0.1,
    )
    try:
        elastic_launch(config, sys.executable)("-u", "-m", module, *others)
    except ChildFailedError as error:  # the rank has said why
        return max(1, next(iter(error.failures.values())).exitcode)
    except SignalException as error:
        return 130 if error.sigval == signal.SIGINT else 128 + error.sigval
    return 0
