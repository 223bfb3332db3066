"""DALI's CPU decoder for whole images, to learn which it cannot decode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from nvidia.dali import __version__ as VERSION
from nvidia.dali import fn, pipeline_def

__all__ = ["CHUNK", "VERSION", "Probe"]
CHUNK = 64  # images in a batch, at most


class Probe:
    """A pipeline that is built anew after each image that kills it."""

    def __init__(self) -> None:
        self.pipe: Any = None

    def failures(self, contents: Sequence[bytes]) -> list[bool]:
        """Which of at most CHUNK image files cannot be decoded. DALI does not say why."""
        if self._run(contents):
            return [False] * len(contents)
        return [not self._run([content]) for content in contents]

    def _run(self, contents: Sequence[bytes]) -> bool:
        if self.pipe is None:
            alone = {
                "exec_dynamic": False,
                "exec_async": False,
                "exec_pipelined": False,
            }  # it must not ask for more than it is fed
            self.pipe = _decode(batch_size=CHUNK, num_threads=1, device_id=None, prefetch_queue_depth=1, **alone)
        try:
            self.pipe.feed_input("content", [np.frombuffer(content, np.uint8) for content in contents])
            self.pipe.run()
        except RuntimeError:
            self.pipe = None
            return False
        return True


@pipeline_def
def _decode() -> Any:
    return fn.decoders.image(fn.external_source(name="content"), device="cpu", adjust_orientation=False)
