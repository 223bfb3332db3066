"""One voice: what any part of the library has to say on any rank is said once, by the first rank.

The library speaks through Python's `logging`, under the name `senet`. A run, or an evaluation, gives it a voice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from senet.distributed import World

LOGGER = logging.getLogger("senet")


class Voice(logging.Handler):
    """Says messages on the first rank. Those of other ranks wait for `gather`, which names the rank if they differ."""

    def __init__(self, world: World, write: Callable[[str], object]) -> None:
        """`write` is given each message on the first rank: a line or more, a warning with that word before it."""
        super().__init__(logging.INFO)
        self.world, self.write = world, write
        self._said: set[str] = set()
        self._waiting: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        warning = record.levelno >= logging.WARNING
        text = f"warning: {record.getMessage()}" if warning else record.getMessage()
        if not self.world.is_main:
            self._waiting.append(text)
        elif not (warning and text in self._said):  # training and validation set have the same to say
            self._said.add(text)
            self.write(text)

    def gather(self) -> None:
        """Say what other ranks had to say and the first one has not said. All ranks call it."""
        waiting, self._waiting = self._waiting, []
        who: dict[str, list[str]] = {}
        for rank, texts in self.world.all_gather_named(waiting).items():
            for text in dict.fromkeys(texts):
                who.setdefault(text, []).append(rank)
        for text, ranks in who.items() if self.world.is_main else ():
            if text not in self._said:
                self._said.add(text)
                self.write(f"{text} ({', '.join(ranks[:4])}{', ...' if len(ranks) > 4 else ''})")


@contextmanager
def speaking(world: World, write: Callable[[str], object]) -> Iterator[Voice]:
    """Give the library a voice for as long as the context lasts."""
    voice = Voice(world, write)
    level, propagate = LOGGER.level, LOGGER.propagate
    LOGGER.addHandler(voice)
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False
    try:
        yield voice
    finally:
        LOGGER.removeHandler(voice)
        LOGGER.setLevel(level)
        LOGGER.propagate = propagate
