"""Makes the JSON schema of a config file, by which an editor completes keys and underlines wrong ones."""

import inspect
import re
from typing import Any

from pydantic import TypeAdapter

from senet.config.schema import Config
from senet.config.tagged import Options, hints, nullable


def json_schema() -> dict[str, Any]:
    """Make the schema of a config file, `base` and `variants` included.

    A file may leave to its base whatever it likes, even what tells classes apart, so nothing is required. Comments
    beside the settings become descriptions.
    """
    made = TypeAdapter(Config).json_schema()
    definitions: dict[str, Any] = made.pop("$defs")
    for kind in _kinds(Config):
        part = made if kind is Config else definitions[kind.__name__]
        part.pop("required", None)
        for name, field in part["properties"].items():
            field.pop("title", None)
            if isinstance(field.get("default"), dict):
                del field["default"]  # an editor would write all of it into the file
            if nullable(hints(kind)[name]):
                field["anyOf"].append({"const": "none"})
        for line in "".join(map(inspect.getsource, kind.__mro__[-2::-1])).splitlines():  # of its bases, too
            if (found := re.match(r"    (\w+): .*  # (.+)", line)) and found[1] in part["properties"]:
                part["properties"][found[1]]["description"] = found[2]
    change = {key: made[key] for key in ("type", "properties", "additionalProperties")}
    more = {
        "base": {"type": "string", "description": "the file that this one changes, relative to it"},
        "variants": {
            "type": "object",
            "description": "named changes of this file: FILE:NAME",
            "additionalProperties": {"anyOf": [{"$ref": "#/$defs/Change"}, {"type": "null"}]},
        },
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Config of the training of an SE network",
        **change,
        "properties": more | change["properties"],
        "$defs": definitions | {"Change": change},
    }


def _kinds(annotation: Any) -> set[type]:
    """Return every class of settings that can stand below an annotation."""
    options = Options.of(annotation)
    found: set[type] = set(options.kinds) if options else set()
    for kind in tuple(found):
        for inner in hints(kind).values():
            found |= _kinds(inner)
    return found
