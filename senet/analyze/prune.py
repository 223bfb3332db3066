"""What a stage loses without its SE blocks (section 4: the last stage's hold most of the parameters, and do little)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from senet.analyze.blocks import blocks
from senet.analyze.excitations import record
from senet.data.source import Source, val_loader
from senet.distributed import World
from senet.errors import UsageError
from senet.models import SEBlock
from senet.run.load import Trained
from senet.run.look import one_pass
from senet.train.evaluate import View
from senet.train.trainer import DTYPES

Row = tuple[str, str, int, float, float]  # stage, its gates, parameters saved, top-1 and top-5 error in percent


def prune(trained: Trained, source: Source, world: World, stages: list[int] | None) -> list[Row]:
    """Return the errors of a net as it is, and with the gates of a stage fixed: at their means over validation images,
    which the layers before can take over, and at 1, which is to leave the blocks out. By default of the last stage.

    Raises UsageError for a net of timm, and for a stage without SE.
    """
    every = {name: block for name, block in blocks(trained.net).items() if isinstance(block, SEBlock)}
    known = sorted({int(name.split("_")[1]) for name in every if name.startswith("SE_")})
    if not known:
        raise UsageError("prune knows the stages of our own residual networks only; name a checkpoint of one")
    if strange := [stage for stage in stages or [] if stage not in known]:
        raise UsageError(f"--stages {strange[0]}: has no SE block; there are stages {', '.join(map(str, known))}")
    means = {each.block: torch.from_numpy(each.mean[-1]) for each in record(trained, source, world, [])}
    rows: list[Row] = [("none", "as trained", 0, *_errors(trained, source, world))]
    for stage in stages or known[-1:]:
        own = {name: block for name, block in every.items() if name.startswith(f"SE_{stage}_")}
        saved = sum(p.numel() for block in own.values() for p in block.parameters())
        for word, constant in (("means", means), ("1", {name: mean * 0 + 1 for name, mean in means.items()})):
            with _fixed({block: constant[name] for name, block in own.items()}):
                rows.append((str(stage), f"fixed at {word}", saved, *_errors(trained, source, world)))
    return rows


@contextmanager
def _fixed(values: dict[SEBlock, Tensor]) -> Iterator[None]:
    """Let blocks have these gates [C] instead of their own."""
    handles = []
    for block, gates in values.items():

        def scale(block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, gates: Tensor = gates) -> Tensor:
            return inputs[0] * gates.to(inputs[0])[:, None, None]

        handles.append(block.register_forward_hook(scale))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _errors(trained: Trained, source: Source, world: World) -> tuple[float, float]:
    config = trained.config
    loader = val_loader(config.data, source, world.rank, world.size, world.device, DTYPES[config.precision])
    errors = one_pass(trained, loader, world, View().of(config.data))
    return errors["top1_error"], errors["top5_error"]
