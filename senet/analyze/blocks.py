"""The SE blocks of a net, ours or timm's, by the names that the paper gives them."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from senet.errors import UsageError
from senet.models import SEBlock


def blocks(net: nn.Module) -> dict[str, nn.Module]:
    """Return the SE blocks in the order of the net: SE_4_6 is that of the sixth unit of stage 4, SE_4_6_2 that of its
    second branch; without stages, they have their paths. Raises UsageError if there is none.
    """
    modules = ((_name(path), module) for path, module in net.named_modules())
    found = {name: module for name, module in modules if isinstance(module, SEBlock) or _gate(module) is not None}
    if not found:
        raise UsageError("this net has no SE block to look into; name a net with SE")
    return found


def _gate(module: nn.Module) -> nn.Module | None:
    """Return what puts out the gates of a block of timm."""
    if not all(isinstance(getattr(module, name, None), nn.Conv2d) for name in ("fc1", "fc2")):
        return None
    found = (getattr(module, name, None) for name in ("gate", "sigmoid"))
    return next((gate for gate in found if isinstance(gate, nn.Module)), None)


def _name(path: str) -> str:
    found = re.search(r"(stage|layer)(\d)\.(\d+)\.(?:branches\.(\d)\.)?", path)
    if found is None:
        return path
    stage = int(found[2]) + (found[1] == "layer")  # timm's first layer is the paper's second stage
    return "_".join(["SE", str(stage), *(str(int(number) + 1) for number in found.groups()[2:] if number)])


@contextmanager
def gates(net: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Yield a mapping that holds, after each forward pass, the gates [N, C] of each block; those that keep a map's
    height and width (`squeeze: none`) are averaged over it.
    """
    last: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            values = module.gates(inputs[0]) if isinstance(module, SEBlock) else output
            last[name] = values.float().mean((2, 3))

        return hook

    handles = [
        (module if isinstance(module, SEBlock) else _gate(module) or module).register_forward_hook(keep(name))
        for name, module in blocks(net).items()
    ]
    try:
        yield last
    finally:
        for handle in handles:
            handle.remove()
