"""What a run folder, or the file that `pack` made of one, tells about a run, whatever state it is in."""

import dataclasses
import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from senet.config import Config, from_dict, to_dict
from senet.errors import UsageError
from senet.run import status
from senet.system.files import write_text
from senet.system.run_folder import RunFolder
from senet.track.tracker import Record


@dataclass(frozen=True)
class RunFacts:
    """A run as its folder tells it. Records are those of `senet.track`, in order."""

    folder: RunFolder
    config: Config
    status: status.Status | None
    starts: list[dict[str, Any]]  # flags, versions, commit, machine of each start; empty if that was not written
    train: list[Record]
    val: list[Record]
    events: list[Record]
    label: str  # tells it from other runs on a page

    @property
    def _flags(self) -> dict[str, Any]:
        return self.starts[-1].get("flags", {}) if self.starts else {}

    @property
    def name(self) -> str:
        return str(self._flags.get("name") or self.folder.path.name)

    @property
    def data(self) -> Path | None:
        """The data set that it was trained on."""
        return Path(root) if (root := self._flags.get("source", {}).get("root")) else None

    @property
    def checksum(self) -> bool:
        """Whether its files were verified."""
        return bool(self._flags.get("source", {}).get("checksum", True))

    @property
    def state(self) -> str:
        return status.word(self.status) if self.status else "not begun"

    @property
    def best(self) -> Record | None:
        """The validation with the least top-1 error; with an average of the weights, that one's errors count."""
        known = [record for record in map(counted, self.val) if record.get("top1_error") is not None]
        return min(known, key=lambda record: record["top1_error"], default=None)

    @property
    def last(self) -> Record | None:
        """The last validation."""
        return counted(self.val[-1]) if self.val else None

    @property
    def hours(self) -> float:
        """How long it has taken, over all starts."""
        records = [*self.train, *self.val, *self.events]
        return max((float(record.get("seconds") or 0.0) for record in records), default=0.0) / 3600

    @property
    def steps_per_epoch(self) -> float | None:
        return self.val[0]["step"] / self.val[0]["epoch"] if self.val and self.val[0]["step"] else None

    @property
    def command(self) -> str:
        """What begins it anew on one machine, in the folder of the project; empty if that is not known."""
        words = [str(word) for word in self.starts[0].get("command", [])] if self.starts else []
        ranks = int(self.starts[0].get("ranks", 1)) if self.starts else 1
        flags = ["--gpus", str(ranks)] if ranks > 1 else []
        return shlex.join(["python", *words[words.index("-m") :], *flags]) if "-m" in words else ""

    @property
    def recipe(self) -> dict[str, Any]:
        """The config without its seed: equal recipes make a group."""
        return {key: value for key, value in to_dict(self.config).items() if key != "seed"}


def counted(record: Record) -> Record:
    """Return a validation with the errors that count: those of the averaged weights, if the run keeps them."""
    average = {key.removeprefix("ema_"): value for key, value in record.items() if key.startswith("ema_")}
    return {**record, **average}


def read(path: Path) -> RunFacts:
    """Read a run folder without what a crash has damaged in it, or a packed file. Raises UsageError for others."""
    folder = RunFolder(path)
    if path.is_file():
        return _unpack(path)
    try:
        config = from_dict(yaml.safe_load(folder.config.read_text()), str(folder.config))
    except FileNotFoundError:
        raise UsageError(f"{path}: no run has begun in there; give the --out folder of a run") from None
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"{folder.config}: cannot be read ({' '.join(str(error).split())}); restore it") from None
    text = folder.log.read_text(encoding="utf-8", errors="replace") if folder.log.exists() else ""
    starts = _json(folder.starts.read_text()) if folder.starts.exists() else []
    return RunFacts(folder, config, status.read(path), starts or [], *_records(text), label=path.name)


def read_all(paths: Sequence[Path]) -> list[RunFacts]:
    """Read several run folders, as `read`; their labels are their paths below the folder that holds them all."""
    above = os.path.commonpath([path.resolve().parent for path in paths])
    labels = [os.path.relpath(path.resolve(), above).removesuffix(".jsonl") for path in paths]
    return [dataclasses.replace(read(path), label=label) for path, label in zip(paths, labels, strict=True)]


def pack(run: RunFacts, file: Path) -> None:
    """Write what reports and tables show of a run into one small file: its config and starts on the first line, then
    its validations, its events, and the last record of training in each epoch. Raises OSError.
    """
    facts = {"config": to_dict(run.config), "starts": run.starts, "status": run.status and asdict(run.status)}
    epochs = {record["epoch"]: record for record in run.train}
    records = sorted([*epochs.values(), *run.val, *run.events], key=lambda record: record["seconds"])
    write_text(file, "".join(json.dumps(line) + "\n" for line in ({"kind": "run"} | facts, *records)))


def _unpack(file: Path) -> RunFacts:
    first, _, rest = file.read_text().partition("\n")
    facts = _json(first)
    if not isinstance(facts, dict) or facts.get("kind") != "run":
        raise UsageError(f"{file}: not made by launch.report --pack; give such a file, or the --out folder of a run")
    known = facts["status"] and status.Status(**facts["status"])
    return RunFacts(
        RunFolder(file), from_dict(facts["config"], str(file)), known, facts["starts"], *_records(rest), label=file.stem
    )


def _records(text: str) -> tuple[list[Record], list[Record], list[Record]]:
    """Return the records of training, of validations and of events."""
    records: dict[str, list[Record]] = {"train": [], "val": [], "event": []}
    for line in text.splitlines():
        record = _json(line)
        if isinstance(record, dict) and record.get("kind") in records and {"epoch", "step"} <= record.keys():
            records[record["kind"]].append(record)
    return records["train"], records["val"], records["event"]


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:  # torn by a crash
        return None


def groups(runs: list[RunFacts]) -> list[list[RunFacts]]:
    """Return runs of one recipe together, in the order of their first ones."""
    found: dict[str, list[RunFacts]] = {}
    for run in runs:
        found.setdefault(json.dumps(run.recipe, sort_keys=True, default=str), []).append(run)
    return list(found.values())
