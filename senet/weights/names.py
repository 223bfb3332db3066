"""How each library names the parts of a residual network, both ways."""

import functools
import re
from dataclasses import dataclass, replace

Rules = tuple[tuple[str, str], ...]

# Ours beside theirs. {s} is the number of a stage, {i} of a unit in it, {k} of a layer in that.
UNIT: Rules = (
    ("stages.stage{s}.{i}.branch.conv{k}", "conv{k}"),
    ("stages.stage{s}.{i}.branch.bn{k}", "bn{k}"),
    ("stages.stage{s}.{i}.shortcut.conv", "downsample.0"),
    ("stages.stage{s}.{i}.shortcut.bn", "downsample.1"),
)
DEEP = ("stem.conv1", "stem.bn1", "stem.conv2", "stem.bn2", "stem.conv", "stem.bn")


@dataclass(frozen=True)
class Library:
    """The names that one library gives, and what its nets compute that shapes do not tell."""

    title: str
    stem: Rules = (("stem.conv", "conv1"), ("stem.bn", "bn1"))
    stage: str = "layer{s}"
    first: int = 1  # its number of the stage that the paper calls 2
    se: tuple[str, str] = ("se.fc1", "se.fc2")
    head: str = "fc"
    caffe: bool = False  # as the released Caffe models: pooling rounds up, blocks without groups stride at their 1x1

    def to_native(self, name: str) -> str | None:
        """Return our name of one of its tensors; None if there is none."""
        return self._translate(name, 1)

    def from_native(self, name: str) -> str | None:
        """Return its name of one of our tensors; None if there is none."""
        return self._translate(name, 0)

    def _translate(self, name: str, side: int) -> str | None:
        module, _, leaf = name.rpartition(".")
        for pattern, template in _patterns(self, side):
            if found := pattern.fullmatch(module):
                numbers = {key: int(number) for key, number in found.groupdict().items()}
                if "s" in numbers:
                    numbers["s"] += (2 - self.first) * (1 if side else -1)
                return f"{template.format(**numbers)}.{leaf}"
        return None


@functools.cache
def _patterns(library: Library, side: int) -> list[tuple[re.Pattern[str], str]]:
    """Return a pattern for each part as it is named on one side, 0 ours or 1 theirs, and its name on the other."""
    se = zip(("stages.stage{s}.{i}.se.down", "stages.stage{s}.{i}.se.up"), library.se, strict=True)
    units = tuple((ours, f"{library.stage}.{{i}}.{theirs}") for ours, theirs in (*UNIT, *se))
    # Files of one library call the classifier by either name.
    rules = (*library.stem, *units, ("fc", library.head), ("fc", "fc"), ("fc", "last_linear"))
    named = [(re.sub(r"\\{(\w)\\}", r"(?P<\1>\\d+)", re.escape(rule[side])), rule[1 - side]) for rule in rules]
    return [(re.compile(pattern), template) for pattern, template in named]


def _deep(*theirs: str) -> Rules:
    return tuple(zip(DEEP, theirs, strict=True))


TIMM = Library("timm or torchvision")
TIMM_DEEP = Library("timm", _deep("conv1.0", "conv1.1", "conv1.3", "conv1.4", "conv1.6", "bn1"))
CADENE = Library(
    "Cadene, or timm's legacy nets",
    (("stem.conv", "layer0.conv1"), ("stem.bn", "layer0.bn1")),
    se=("se_module.fc1", "se_module.fc2"),
    head="last_linear",
    caffe=True,
)
CADENE_DEEP = replace(CADENE, stem=_deep(*(f"layer0.{part}{k}" for k in (1, 2, 3) for part in ("conv", "bn"))))
MOSKOMULE = Library("moskomule", se=("se.fc.0", "se.fc.2"))
NVIDIA = Library("NVIDIA", stage="layers.{s}", first=0, se=("squeeze.squeeze", "squeeze.expand"))
NVIDIA_2020 = Library("NVIDIA, 2020", se=("squeeze.squeeze", "squeeze.expand"))
LIBRARIES = (TIMM, TIMM_DEEP, CADENE, CADENE_DEEP, MOSKOMULE, NVIDIA, NVIDIA_2020)
