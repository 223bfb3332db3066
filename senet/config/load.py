"""Makes a Config of files and overrides, and plain data of a Config; says in one line what is wrong with either."""

import dataclasses
import difflib
import functools
import json
import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from senet.config import files
from senet.config.check import check
from senet.config.files import Layer
from senet.config.schema import Config
from senet.config.tagged import Options, hints, merge, nullable, tags
from senet.errors import UsageError

T = TypeVar("T")


def load(name: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Load the config in `FILE.yaml` or `FILE.yaml:VARIANT`, changed by `key=value` overrides typed as in the file.

    A change of a tag (cosine for step) drops what was inherited for the other class. The order of the overrides does
    not matter, unless two give the same key.

    Raises UsageError naming the file to mend, the key, its value and the nearest right one.
    """
    layers = files.layers(str(name))
    change: dict[str, Any] = {}
    for override in overrides:
        change = merge(Config, change, files.assignment(override), inherit=False)
    if change:
        layers.append(Layer("command line", change))
    tree: dict[str, Any] = {}
    for layer in layers:
        tree = merge(Config, tree, layer.settings)
    config = read(Config, tree, str(name), layers)
    check(config)
    return config


def variants(name: str | Path) -> list[str]:
    """Return the `FILE:NAME` of every variant in a file, in its order; the file itself if it has none."""
    path, _ = files.find(str(name))
    names = files.read_file(path).get("variants") or {}
    return [f"{path}:{name}" for name in names] or [str(path)]


def from_dict(tree: Mapping[str, Any], where: str = "config") -> Config:
    """Make a config of what `to_dict` returned. Keys, types and ranges are checked, what `check` refuses is not."""
    return read(Config, tree, where)


def read(kind: type[T], tree: Any, where: str, layers: Sequence[Layer] = ()) -> T:
    """Make an instance of a dataclass of plain data, which come from `where`, or from `layers` if these have the key.

    Raises UsageError as for a config.
    """
    try:
        return typing.cast(T, _make(kind, tree))
    except _Wrong as error:
        near = _nearest_key(kind, tree, error.path, error.inside) if error.inside else ""
        place, key = _written(layers, error.path) or where, ".".join(error.path) or "the file"
        raise UsageError(f"{place}: {key}: {error.message}{near}") from None


def to_dict(config: Config) -> dict[str, Any]:
    """Return a config as plain mappings, lists and scalars, ready for YAML, JSON or a checkpoint."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def difference(old: Config, new: Config) -> list[str]:
    """Return `key: old -> new` for every setting in which two configs differ."""

    def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
        for key, value in tree.items():
            yield from flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]

    a, b = dict(flat(to_dict(old))), dict(flat(to_dict(new)))
    return [f"{key}: {a.get(key)} -> {b.get(key)}" for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]


# -------------------------------------------------------------------------------------------------------------- errors


class _Wrong(Exception):
    """Something is wrong with the value of a key; `inside` is the class that lacks it, if that is what is wrong."""

    def __init__(self, path: Sequence[str], message: str, inside: type | None = None) -> None:
        self.path, self.message, self.inside = path, message, inside


_adapter = functools.cache(pydantic.TypeAdapter)


def _make(annotation: Any, value: Any, path: tuple[str, ...] = (), tag: str = "") -> Any:
    """Return what plain data stand for: settings for a mapping, and any other value as it is. Raises _Wrong.

    `tag` is the nearest one that chose a class, for messages.
    """
    options = Options.of(annotation)
    if nullable(annotation) and value in (None, "none"):
        return None
    if options is None:
        return value  # the class that it is for checks it
    value = options.mapping(value)
    if not isinstance(value, Mapping):
        raise _Wrong(path, f"expected a mapping of settings, got {value!r}")
    kinds, key, words = options.narrow(value)
    if not kinds:
        raise _Wrong((*path, key), _none_of(value[key], words))
    known = hints(kind := kinds[0])
    if options.tagged:
        chosen = ["/".join(tags(kind, key)) for key in options.tagged.keys if tags(kind, key)]
        tag = f" {'.'.join(path)} {' '.join(chosen)}"
    elif nullable(annotation):
        tag = ""
    for key in value:
        if key not in known:
            raise _Wrong((*path, str(key)), f"unknown key{tag and ' of'}{tag}", inside=kind)
    made = {key: _make(known[key], part, (*path, key), tag) for key, part in value.items()}
    try:
        return _adapter(kind).validate_python(made)
    except pydantic.ValidationError as error:
        errors = error.errors(include_url=False)
        raise _Wrong((*path, str(errors[0]["loc"][0])), _explain(errors, tag)) from None


EXPECTED = {
    "int_type": "a whole number", "float_type": "a finite number", "finite_number": "a finite number",
    "bool_type": "true or false", "string_type": "a text", "tuple_type": "a list",
    "dataclass_type": "a mapping of settings",
}  # fmt: skip
LIMITS = {
    "greater_than_equal": "at least {ge}", "greater_than": "above {gt}", "less_than_equal": "at most {le}",
    "less_than": "below {lt}",
}  # fmt: skip
LENGTHS = {"too_long": "at most {max_length}", "too_short": "at least {min_length}"}


def _explain(errors: Sequence[Any], tag: str) -> str:
    """Say what is wrong by the first of pydantic's errors of one class."""
    error = errors[0]
    reason, value, context = error["type"], error["input"], error.get("ctx", {})
    words = [word for one in errors if one["loc"][0] == error["loc"][0] for word in _words(one)]
    if words and reason in ("literal_error", "bool_type"):
        return _none_of(value, ["true", "false", *words] if reason == "bool_type" else words)
    if reason == "missing" and len(error["loc"]) == 1:
        return f"is needed{tag and ' by'}{tag}"
    if reason == "missing":
        length = 1 + max(one["loc"][-1] for one in errors if one["loc"][:-1] == error["loc"][:-1])
        return f"expected a list of {length} numbers, got {value!r}"
    if reason in LENGTHS:
        return f"expected a list of {LENGTHS[reason].format(**context)}, got {value!r}"
    if reason in LIMITS:
        return f"{value!r} is out of range: must be {LIMITS[reason].format(**context)}"
    return f"expected {EXPECTED.get(reason, error['msg'])}, got {value!r}"


def _words(error: Any) -> list[str]:
    """Return what may stand in place of a value that is none of a few words."""
    return re.split(", | or ", error["ctx"]["expected"].replace("'", "")) if error["type"] == "literal_error" else []


def _none_of(value: Any, words: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(value), words, n=1, cutoff=0.5)
    return f"{value!r} is not one of {', '.join(words)}" + (f"; did you mean {near[0]!r}?" if near else "")


def _nearest_key(kind: type, tree: Any, path: Sequence[str], inner: type) -> str:
    """Return `; did you mean ...?` with the same name elsewhere, or one like it; otherwise the names beside it."""
    beside, name = [".".join([*path[:-1], key]) for key in hints(inner)], path[-1]
    every = sorted(_keys(kind, tree), key=lambda key: key.count("."))
    found = [key for key in every if _last(key) == name]
    for keys, cutoff in ((beside, 0.5), (every, 0.75)):
        words = difflib.get_close_matches(name, [_last(key) for key in keys], n=1, cutoff=cutoff)
        found += [key for key in keys if _last(key) in words]
    return f"; did you mean {found[0]}?" if found else f"; known: {', '.join(map(_last, beside))}"


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _keys(annotation: Any, value: Any, prefix: str = "") -> Iterator[str]:
    """Yield every key that a config like this one can have."""
    if options := Options.of(annotation):
        value = options.mapping(value)
        values = value if isinstance(value, Mapping) else {}
        for name, inner in hints(options.pick(values) or options.kinds[0]).items():
            yield prefix + name
            yield from _keys(inner, values.get(name), f"{prefix}{name}.")


def _written(layers: Sequence[Layer], path: Sequence[str]) -> str:
    """Return the name of the last layer that writes a key, or as much of it as is written: the one to mend."""
    for length in range(len(path), 0, -1):
        for name, settings in reversed(layers):
            value: Any = settings
            for part in path[:length]:
                value = value.get(part, path) if isinstance(value, Mapping) else path
            if value is not path:
                return name
    return ""
