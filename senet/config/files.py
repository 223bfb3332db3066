"""YAML files with `base` and `variants`, read strictly into frozen dataclasses. Nothing in here knows of nets."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from senet.errors import UsageError


def read(name: str, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The settings in `FILE.yaml` or `FILE.yaml:VARIANT`, `base` and variant merged. Raises UsageError."""
    path, variant = _split(name)
    tree = read_file(path)
    if path.resolve() in seen:
        raise UsageError(f"{path}: base leads back to itself; remove one of the base lines")
    base, changes = tree.pop("base", None), tree.pop("variants", None) or {}
    if base is not None:
        if not isinstance(base, str):
            raise UsageError(f"{path}: base must be the name of a file, not {base!r}")
        tree = _merge(read(str(path.parent / base), (*seen, path.resolve())), tree)
    if not isinstance(changes, dict):
        raise UsageError(f"{path}: variants must map names to changes, not {changes!r}")
    if variant is not None:
        if variant not in changes:
            raise UsageError(f"{path}: no variant {variant!r}{_nearest(variant, changes)}")
        tree = _merge(tree, changes[variant] or {})
    return tree


def _split(name: str) -> tuple[Path, str | None]:
    path, colon, variant = name.rpartition(":")
    return (Path(path), variant) if colon and path.endswith((".yaml", ".yml")) else (Path(name), None)


def read_file(path: Path) -> dict[str, Any]:
    """The mapping in one file. Raises UsageError."""
    try:
        tree = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        near = _nearest(path.name, [p.name for p in path.parent.glob("*.yaml")]) if path.parent.is_dir() else ""
        raise UsageError(f"{path}: no such config file{near}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UsageError(f"{path}: must be a mapping of settings, not {type(tree).__name__}")
    return tree


def _merge(base: Any, change: Any) -> Any:
    if not (isinstance(base, dict) and isinstance(change, dict)):
        return change
    return base | {key: _merge(base.get(key), value) for key, value in change.items()}


def override(tree: dict[str, Any], assignment: str) -> None:
    """Put `key=value`, typed as in a file, into `tree`. Raises UsageError."""
    key, equals, text = assignment.partition("=")
    if not equals or not key:
        raise UsageError(f"{assignment!r}: an override is written key=value, as in optim.lr=0.3")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UsageError(f"{key}: {text!r} is not valid YAML") from None
    *parents, last = key.split(".")
    for parent in parents:
        if not isinstance(tree.get(parent), dict):
            tree[parent] = {}
        tree = tree[parent]
    tree[last] = value


def convert(value: Any, kind: Any, key: str, where: str) -> Any:
    """`value`, as YAML gave it, as an instance of the annotated type `kind`."""

    def wrong(expected: str) -> UsageError:
        return UsageError(f"{where}: {key}: expected {expected}, got {value!r}")

    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise UsageError(f"{where}: {key or 'the file'}: expected a mapping of settings, got {value!r}")
        kinds = typing.get_type_hints(kind)
        prefix = f"{key}." if key else ""
        for name in value:
            if name not in kinds:
                raise UsageError(f"{where}: {prefix}{name}: unknown key{_nearest(str(name), kinds)}")
        return typing.cast(Any, kind)(
            **{name: convert(v, kinds[name], prefix + name, where) for name, v in value.items()}
        )
    if origin is types.UnionType:
        if value is None and type(None) in arguments:
            return None
        (kind,) = (argument for argument in arguments if argument is not type(None))
        return convert(value, kind, key, where)
    if origin is Literal:
        if value not in arguments:
            raise UsageError(
                f"{where}: {key}: {value!r} is not one of {', '.join(arguments)}{_nearest(str(value), arguments)}"
            )
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise wrong("a list")
        if arguments[-1] is not Ellipsis and len(value) != len(arguments):
            raise wrong(f"a list of {len(arguments)} numbers")
        return tuple(convert(item, arguments[0], key, where) for item in value)
    if kind is float:
        # PyYAML follows YAML 1.1, where 1e-4 is a string.
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise wrong("a finite number")
        return number
    if kind is int and (not isinstance(value, int) or isinstance(value, bool)):
        raise wrong("a whole number")
    if kind is bool and not isinstance(value, bool):
        raise wrong("true or false")
    if kind is str and not isinstance(value, str):
        raise wrong("a text")
    return value


def _nearest(word: str, words: Iterable[str]) -> str:
    words = [str(w) for w in words]
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(words)}" if words and len(words) <= 20 else ""
