"""One call passed on to several objects."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def fan_out(parts: Sequence[object], method: str) -> Callable[..., None]:
    """Return a function that calls `method` of all `parts` in their order, with the arguments that it is given."""
    methods = [getattr(part, method) for part in parts]

    def call(*arguments: object, **named: object) -> None:
        for one in methods:
            one(*arguments, **named)

    return call
