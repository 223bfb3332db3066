"""Makes a Config of files and overrides, and plain data of a Config; says in one line what is wrong with either."""

from __future__ import annotations

import dataclasses
import difflib
import functools
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
from senet.config.tagged import Options, hints, merge, tags
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
    config = _validate(Config, tree, str(name), layers)
    check(config)
    return config


def variants(name: str | Path) -> list[str]:
    """Return the `FILE:NAME` of every variant in a file, in its order; the file itself if it has none."""
    path, _ = files.find(str(name))
    names = files.read_file(path).get("variants") or {}
    return [f"{path}:{name}" for name in names] or [str(path)]


def from_dict(tree: Mapping[str, Any], where: str = "config") -> Config:
    """Make a config of what `to_dict` returned. Keys, types and ranges are checked, what `check` refuses is not."""
    return _validate(Config, tree, where)


def read(kind: type[T], tree: Any, where: str) -> T:
    """Make an instance of a dataclass of plain data. Raises UsageError as for a config."""
    return _validate(kind, tree, where)


def to_dict(config: Config) -> dict[str, Any]:
    """Return a config as plain mappings, lists and scalars, ready for YAML, JSON or a checkpoint."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(v) for key, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, tuple | list) else value

    return typing.cast(dict[str, Any], plain(dataclasses.asdict(config)))


def difference(old: Config, new: Config) -> list[str]:
    """Return `key: old -> new` for every setting in which two configs differ."""

    def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in tree.items():
            out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        return out

    a, b = flat(to_dict(old)), flat(to_dict(new))
    return [f"{key}: {a.get(key)} -> {b.get(key)}" for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]


# -------------------------------------------------------------------------------------------------------------- errors


@functools.cache
def _adapter(kind: Any) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(kind)


def _validate(kind: type[T], tree: Any, where: str, layers: Sequence[Layer] = ()) -> T:
    try:
        return typing.cast(T, _adapter(typing.cast(Any, kind)).validate_python(tree))
    except pydantic.ValidationError as error:
        errors = error.errors(include_url=False)
    # An unknown key first: a missing one may be what it was meant to be.
    wrong = next((one for one in errors if one["type"] == UNKNOWN), errors[0])
    path, message = _explain(kind, tree, wrong, errors)
    raise UsageError(f"{_written(layers, path) or where}: {'.'.join(path) or 'the file'}: {message}")


UNKNOWN = "unexpected_keyword_argument"
EXPECTED = {
    "int_type": "a whole number", "float_type": "a finite number", "finite_number": "a finite number",
    "bool_type": "true or false", "string_type": "a text", "tuple_type": "a list",
    "dataclass_type": "a mapping of settings",
}  # fmt: skip
LIMITS = {
    "greater_than_equal": "at least {ge}", "greater_than": "above {gt}", "less_than_equal": "at most {le}",
    "less_than": "below {lt}",
}  # fmt: skip


def _explain(kind: type, tree: Any, error: Any, errors: Sequence[Any]) -> tuple[list[str], str]:
    """Return the key that one of pydantic's errors is about, and what is wrong with it."""
    reason, value, context = error["type"], error["input"], error.get("ctx", {})
    path, inner, tag = _walk(kind, error["loc"])
    if reason == UNKNOWN:
        return path, f"unknown key{tag and ' of'}{tag}{_nearest_key(kind, tree, path, inner)}"
    if reason in ("unknown_tag", "literal_error"):
        words = context["known"] if "known" in context else re.split(", | or ", context["expected"].replace("'", ""))
        if reason == "unknown_tag":
            path, value = [*path, context["key"]], value if isinstance(value, str) else value[context["key"]]
        near = difflib.get_close_matches(str(value), words, n=1, cutoff=0.5)
        return path, f"{value!r} is not one of {', '.join(words)}" + (f"; did you mean {near[0]!r}?" if near else "")
    if reason == "missing" and isinstance(error["loc"][-1], int):
        length = 1 + max(one["loc"][-1] for one in errors if one["loc"][:-1] == error["loc"][:-1])
        return path, f"expected a list of {length} numbers, got {value!r}"
    if reason == "missing":
        return path, f"is needed{tag and ' by'}{tag}"
    if reason in ("too_long", "too_short"):
        length = f"at most {context['max_length']}" if reason == "too_long" else f"at least {context['min_length']}"
        return path, f"expected a list of {length}, got {value!r}"
    if reason in LIMITS:
        return path, f"{value!r} is out of range: must be {LIMITS[reason].format(**context)}"
    return path, f"expected {EXPECTED.get(reason, error['msg'])}, got {value!r}"


def _walk(kind: type, loc: Sequence[str | int]) -> tuple[list[str], type, str]:
    """Return pydantic's location of an error as a key, the class that the key is of, and the tag that chose it."""
    path: list[str] = []
    annotation: Any = kind
    tag = ""
    for part in loc:
        options = Options.of(annotation)
        chosen = next((one for one in options.kinds if one.__name__ == part), None) if options else None
        if options and options.tagged and chosen:
            annotation = kind = chosen
            words = [tags(kind, key) for key in options.tagged.keys if tags(kind, key)]
            tag = f" {'.'.join(path)} {' '.join('/'.join(word) for word in words)}"
            continue
        if isinstance(part, int):
            break
        if options:
            kind = options.kinds[0] if not options.tagged else kind
            tag = tag if options.tagged or dataclasses.is_dataclass(annotation) else ""
        path.append(part)
        annotation = hints(kind).get(part)
    return path, kind, tag


def _nearest_key(kind: type, tree: Any, path: Sequence[str], inner: type) -> str:
    """Return `; did you mean ...?` with the same name elsewhere, a name like it beside it, or one like it elsewhere;
    otherwise the names beside it.
    """
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
