"""VGG-16 with BN after every convolution (section 5.1), plain and SE."""

from torch import Tensor, nn

from senet.config import nets
from senet.models.layers import ConvBN, se_slot
from senet.models.network import Staged

STAGES = {"stage1": (64, 2), "stage2": (128, 2), "stage3": (256, 3), "stage4": (512, 3), "stage5": (512, 3)}


class VGG16(Staged):
    """[N, 3, H, W] -> logits [N, classes]. SE follows the ReLU of each convolution (section 3.3).

    A map that is not 7x7 (as it is at 224x224) is averaged, or repeated, to 7x7.
    """

    def __init__(self, net: nets.VGG16, classes: int) -> None:
        channels, stages = 3, {}
        for stage, (width, count) in STAGES.items():
            stages[stage] = nn.Sequential()
            for _ in range(count):
                unit = ConvBN(channels, width, 3)
                unit.add_module("se", se_slot(width, net.se))
                stages[stage].append(unit)
                channels = width
            stages[stage].add_module("pool", nn.MaxPool2d(2))
        head = nn.Sequential(
            nn.Linear(channels * 49, net.hidden), nn.ReLU(), nn.Dropout(net.dropout),
            nn.Linear(net.hidden, net.hidden), nn.ReLU(), nn.Dropout(net.dropout),
        )  # fmt: skip
        super().__init__(nn.Identity(), stages, nn.Linear(net.hidden, classes), nn.AdaptiveAvgPool2d(7), head)
        for layer in head:
            if isinstance(layer, nn.Linear):  # nothing normalises what they put out
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def pool(self, x: Tensor) -> Tensor:
        return x.flatten(1)
