"""Finds and reads YAML files with `base` and `variants`. Nothing in here knows what the settings mean."""

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from senet.errors import UsageError

_PACKAGE = Path(__file__).parent.parent
CONFIGS = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"  # installed, or not


class Layer(NamedTuple):
    """Holds the settings that are written in one place, and the name of that place."""

    where: str
    settings: dict[str, Any]


class _Loader(yaml.SafeLoader):
    """Reads numbers as YAML 1.2 does: PyYAML follows 1.1, in which 1e-4 is a string."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def parse(text: str) -> Any:
    """Return the value that a piece of YAML stands for. Raises yaml.YAMLError."""
    return yaml.load(text, _Loader)  # noqa: S506 (it is a SafeLoader)


def layers(name: str, seen: tuple[Path, ...] = ()) -> list[Layer]:
    """Return what `FILE.yaml` or `FILE.yaml:VARIANT` consists of: its base files, the file and its variant, in this
    order, for each changes those before it.

    Raises UsageError naming the file that cannot be read, or the nearest name of one that is not there.
    """
    path, variant = find(name)
    tree = read_file(path)
    if path.resolve() in seen:
        raise UsageError(f"{path}: base leads back to itself; remove one of the base lines")
    base, changes = tree.pop("base", None), tree.pop("variants", None) or {}
    found: list[Layer] = []
    if base is not None:
        if not isinstance(base, str):
            raise UsageError(f"{path}: base must be the name of a file, not {base!r}")
        found = layers(os.path.normpath(path.parent / base), (*seen, path.resolve()))
    if not isinstance(changes, dict):
        raise UsageError(f"{path}: variants must map names to changes, not {changes!r}")
    found.append(Layer(str(path), tree))
    if variant is not None:
        if variant not in changes:
            raise UsageError(f"{path}: no variant {variant!r}{nearest(variant, changes)}")
        change = changes[variant] or {}
        if not isinstance(change, dict):
            raise UsageError(f"{path}:{variant}: must be a mapping of settings, not {change!r}")
        found.append(Layer(f"{path}:{variant}", change))
    return found


def find(name: str) -> tuple[Path, str | None]:
    """Return the file and the variant that `FILE.yaml` or `FILE.yaml:VARIANT` names. The end of a path in configs/, as
    `se_resnet50` or `imagenet/se_resnet50`, is enough for FILE.

    Raises UsageError if there is no such file, or several.
    """
    path, colon, variant = name.rpartition(":")
    file = Path(path if colon else name)
    if colon and Path(name).exists():
        file, colon = Path(name), ""
    if not file.exists() and not file.is_absolute():
        wanted = file.with_name(file.name.removesuffix(".yaml") + ".yaml").parts
        known = sorted(CONFIGS.rglob("*.yaml"))
        matching = [one for one in known if one.parts[-len(wanted) :] == wanted]
        if len(matching) > 1:
            raise UsageError(f"{name}: several configs are called so: {', '.join(map(_shown, matching))}")
        if matching:
            file = Path(_shown(matching[0]))
    if not file.exists():
        beside = sorted(file.parent.glob("*.yaml")) if file.suffix and file.parent.is_dir() else []
        words = {one.stem: _shown(one) for one in [*sorted(CONFIGS.rglob("*.yaml")), *beside]}
        near = [words[word] for word in difflib.get_close_matches(file.stem, words)]
        raise UsageError(f"{file}: no such config file" + (f"; did you mean {' or '.join(near)}?" if near else ""))
    return file, variant if colon else None


def _shown(file: Path) -> str:
    """Return a path as it would be typed in the current folder."""
    here = Path.cwd()
    return str(file.relative_to(here) if file.is_relative_to(here) else file)


def read_file(path: Path) -> dict[str, Any]:
    """Return the mapping in one file. Raises UsageError if it cannot be read or holds none."""
    try:
        tree = parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UsageError(f"{path}: must be a mapping of settings, not {type(tree).__name__}")
    return tree


def assignment(text: str) -> dict[str, Any]:
    """Return the mapping that `key.key=value` stands for, its value typed as in a file. Raises UsageError."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"{text!r}: an override is written key=value, as in optim.lr=0.3")
    try:
        tree = parse(value)
    except yaml.YAMLError:
        raise UsageError(f"{key}: {value!r} is not valid YAML") from None
    for part in reversed(key.split(".")):
        tree = {part: tree}
    return tree


def nearest(word: str, words: Iterable[str]) -> str:
    """Return `; did you mean ...?` with the word most like it; otherwise the words there are, if they are few."""
    words = [str(w) for w in words]
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(words)}" if words and len(words) <= 20 else ""
