"""The Squeeze-and-Excitation block (section 3)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from senet import config

GATES = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu}
SLOPES: dict[str, Callable[[Tensor], Tensor]] = {  # the derivative of each, from its value
    "sigmoid": lambda s: s * (1 - s),
    "tanh": lambda s: 1 - s * s,
    "relu": lambda s: (s > 0).to(s.dtype),
}


class SEBlock(nn.Module):
    """Scales each channel by a gate computed from all of them: squeeze, two FC layers around a ReLU, gate (equations
    2-4).

    The FC layers are 1x1 convolutions, as in the released models; their width between is C // ratio to the letter, at
    least 1, unless the settings say otherwise. With `squeeze: none` (table 16) the gates keep the map's height and
    width.
    """

    def __init__(self, channels: int, se: config.SqueezeExcitation) -> None:
        super().__init__()
        self.settings = se
        middle = se.between(channels)
        self.down = nn.Conv2d(channels, middle, 1, bias=se.bias)
        self.up = nn.Conv2d(middle, channels, 1, bias=se.bias)

    def gates(self, x: Tensor) -> Tensor:
        """Compute the gates: [N, C, H, W] -> [N, C, 1, 1], or [N, C, H, W] without the squeeze."""
        if self.settings.squeeze == "avg":
            x = x.mean((2, 3), keepdim=True)
        elif self.settings.squeeze == "max":
            x = x.amax((2, 3), keepdim=True)
        return GATES[self.settings.gate](self.up(torch.relu(self.down(x))))

    def forward(self, x: Tensor) -> Tensor:
        """Scale a map by its gates: [N, C, H, W] -> the same shape."""
        return x * self.gates(x)
