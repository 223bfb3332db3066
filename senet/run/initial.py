"""The weights that a new run begins with, from whatever `senet.run.load` knows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from senet.config import Config, Timm, difference
from senet.data.imagenet import comparable
from senet.errors import UsageError
from senet.models import classifier
from senet.run.load import load, native
from senet.system.run_folder import facts_of
from senet.weights import check, files

TRAINING_ONLY = ("net.dropout:", "net.zero_init:")  # settings that weights do not depend on


def begin(net: nn.Module, config: Config, classes: Sequence[str], what: str) -> str:
    """Put trained weights into the net of a config, whose data set has these `classes`, and say what was done.

    The classifier stays as it is, fresh, if the weights tell apart other classes: other names or, if those are not
    known, another number. Raises UsageError for weights of another net; it names the settings that fit.
    """
    path = Path(what)
    if isinstance(config.net, Timm) and path.is_file() and not facts_of(path):
        state, known, origin = files.read(path).state, tuple[str, ...](), what  # whatever timm calls its parts
    else:
        trained = load(what)
        trained = trained if isinstance(config.net, Timm) else native(trained)
        differs = difference(Config(net=trained.config.net), Config(net=config.net)) if trained.certain else []
        if differs := [change for change in differs if not change.startswith(TRAINING_ONLY)]:
            changes = "; ".join(differs[:4])
            raise UsageError(f"--init {what}: weights of another net; from theirs to this config's: {changes}")
        state, known, origin = trained.net.state_dict(), trained.classes, trained.origin
    wanted = dict(net.state_dict())
    own = {id(value) for value in classifier(net).state_dict(keep_vars=True).values()}
    head = [name for name, value in net.state_dict(keep_vars=True).items() if id(value) in own]
    names = [[comparable(name) for name in each] for each in (known, classes)]
    fresh = all(names) and names[0] != names[1]
    fresh = fresh or any(name in state and state[name].shape != wanted[name].shape for name in head)
    if fresh:
        state = {**state, **{name: wanted[name] for name in head}}
    check(state, wanted, f"--init {what}")
    net.load_state_dict(state)
    made = "the classifier is made anew for " if fresh else "the classifier is kept, for "
    return f"begins with {origin}; {made}{config.data.classes} classes"
