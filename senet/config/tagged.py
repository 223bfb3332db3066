"""Settings that are one of several classes: choosing the class, joining changes. Nothing in here knows of nets.

A `Tagged` annotation names the keys that tell the classes apart: a class is chosen by it, also by `merge` when one file
changes another.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import GetJsonSchemaHandler
from pydantic_core import CoreSchema


@functools.cache
def hints(kind: type) -> dict[str, Any]:
    """Return the annotated type of each field of a dataclass."""
    known = typing.get_type_hints(kind, include_extras=True)
    return {field.name: known[field.name] for field in dataclasses.fields(kind)}


class Tagged:
    """Annotates a union of dataclasses that differ in the values of some keys: `Tagged(shape="step")`.

    Each key, asked in this order, comes with the value that it has when it is not written. A bare word is the value of
    the first: `schedule: cosine` is `schedule: {shape: cosine}`. `implied` holds keys that say by themselves what the
    first one is: `net: {timm: NAME}` is `net: {family: timm, timm: NAME}`.
    """

    def __init__(self, implied: Mapping[str, str] | None = None, **keys: str) -> None:
        self.keys, self.implied, self.key = keys, implied or {}, next(iter(keys))

    def mapping(self, value: Any) -> Any:
        """Turn a bare word, or a mapping whose class is implied, into a mapping that has the first key."""
        if isinstance(value, str):
            return {self.key: value}
        if isinstance(value, Mapping) and self.key not in value:
            for key in self.implied.keys() & value.keys():
                return {self.key: self.implied[key], **value}
        return value

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        choices = handler(schema)["anyOf"]
        fields = [handler.resolve_ref_schema(choice)["properties"][self.key] for choice in choices]
        words = [word for field in fields for word in field.get("enum", [field.get("const")])]
        return {"anyOf": [*choices, {"enum": list(dict.fromkeys(words))}]}


@dataclasses.dataclass(frozen=True)
class Options:
    """Holds the classes that a setting may have, one or several."""

    kinds: tuple[type, ...]
    tagged: Tagged | None = None

    @classmethod
    def of(cls, annotation: Any) -> Options | None:
        """Return the options of an annotation; None if it is one of plain values."""
        if dataclasses.is_dataclass(annotation):
            return cls((typing.cast(type, annotation),))
        if typing.get_origin(annotation) is Annotated:
            inner, *marks = typing.get_args(annotation)
            tagged = next((mark for mark in marks if isinstance(mark, Tagged)), None)
            return cls(typing.get_args(inner), tagged) if tagged else cls.of(inner)
        for argument in typing.get_args(annotation):  # X | None
            if found := cls.of(argument):
                return found
        return None

    def mapping(self, value: Any) -> Any:
        return self.tagged.mapping(value) if self.tagged else value

    def pick(self, value: Mapping[str, Any]) -> type | None:
        """Return the class that a mapping describes; None if one of its tags is unknown."""
        kinds, _, _ = self.narrow(value)
        return kinds[0] if kinds else None

    def narrow(self, value: Mapping[str, Any]) -> tuple[tuple[type, ...], str, list[str]]:
        """Return the classes that a mapping may describe, the last tag asked for, and the values that it could have:
        the first unknown one if there is no class.
        """
        kinds, key, words = self.kinds, "", []
        for key, usual in self.tagged.keys.items() if self.tagged else ():
            words = list(dict.fromkeys(word for kind in kinds for word in tags(kind, key)))
            kinds = tuple(kind for kind in kinds if value.get(key, usual) in tags(kind, key))
            if len(kinds) < 2:
                break
        return kinds, key, words


def nullable(annotation: Any) -> bool:
    """Return whether a setting may be left away, which is written null or none."""
    return type(None) in typing.get_args(annotation)


def tags(kind: type, key: str) -> tuple[str, ...]:
    """Return the values that a tag has in a class."""
    return typing.get_args(hints(kind).get(key))


def merge(annotation: Any, base: Any, change: Any, inherit: bool = True) -> Any:
    """Lay `change` over `base` key by key and return the result; what is no mapping replaces.

    If the change makes a setting one of another class, what it inherits and that class lacks is dropped: it was written
    for another. Without `inherit` nothing is dropped: both are parts of one change.
    """
    options = Options.of(annotation)
    if options is None and isinstance(base, Mapping) and isinstance(change, Mapping):
        return {**base, **change}
    if change == "none" and nullable(annotation):
        return None
    if options is None or change is None:
        return change
    base = options.mapping(base)
    # What a key implies is for the whole change to say: another part of it may say otherwise.
    change = options.mapping(change) if inherit or isinstance(change, str) else change
    if not isinstance(change, Mapping):
        return change
    base = base if isinstance(base, Mapping) else {}
    old, new = options.pick(base), options.pick({**base, **change})
    if old is None or new is None:
        return {**base, **change}
    if inherit and old is not new:
        base = _inherited(old, new, base)
    return base | {key: merge(hints(new).get(key), base.get(key), value, inherit) for key, value in change.items()}


def _inherited(old: type, new: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a setting of class `new` takes over from the values of one of class `old`.

    What is fixed in the old class (CIFAR's classes) and a setting of the new one stays as it was. Keys that neither
    class has stay, so that they are refused.
    """
    fixed = {key: getattr(old, key) for key in hints(new) if key not in hints(old) and hasattr(old, key)}
    kept = fixed | {key: value for key, value in values.items() if key in hints(new) or key not in hints(old)}
    for key, value in kept.items():
        ours, theirs = Options.of(hints(new).get(key)), Options.of(hints(old).get(key))
        if ours and theirs and ours != theirs and isinstance(value, Mapping):
            pair = theirs.pick(value), ours.pick(value)
            kept[key] = _inherited(pair[0], pair[1], value) if pair[0] and pair[1] else value
    return kept
