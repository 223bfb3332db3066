"""MobileNet (Howard et al. 2017), plain and SE (table 3: 569 and 572 MFLOPs, 4.2 and 4.7 million parameters)."""

from torch import nn

from senet.config import nets
from senet.models.layers import ConvBN, se_slot
from senet.models.network import Staged

# Outputs of the units of a stage; the first unit strides, but for that of stage 1.
STAGES = {
    "stage1": (64,),
    "stage2": (128, 128),
    "stage3": (256, 256),
    "stage4": (512, 512, 512, 512, 512, 512),
    "stage5": (1024, 1024),
}


class Unit(nn.Sequential):
    """A depthwise separable convolution: 3x3 depthwise, 1x1 pointwise, each with BN and ReLU, and an SE block."""

    def __init__(self, inputs: int, outputs: int, stride: int, se: nets.MobileNetSE | None) -> None:
        super().__init__()
        self.depthwise = ConvBN(inputs, inputs, 3, stride, groups=inputs)
        if se and se.place == "depthwise":
            self.se = se_slot(inputs, se)
        self.pointwise = ConvBN(inputs, outputs, 1)
        if se and se.place == "pointwise":
            self.se = se_slot(outputs, se)


class MobileNet(Staged):
    """[N, 3, H, W] -> logits [N, classes].

    The paper does not say where SE stands. After the pointwise convolution of each of the 13 units it gives the paper's
    numbers (572 MFLOPs, 4.7 M); `place: depthwise` gives 571 and 4.6.
    """

    def __init__(self, net: nets.MobileNet, classes: int) -> None:
        channels = max(1, int(32 * net.width))
        stem, stages = ConvBN(3, channels, 3, 2), {}
        for stage, widths in STAGES.items():
            stages[stage] = nn.Sequential()
            for index, full in enumerate(widths):
                outputs = max(1, int(full * net.width))
                stride = 2 if index == 0 and stage != "stage1" else 1
                stages[stage].append(Unit(channels, outputs, stride, net.se))
                channels = outputs
        super().__init__(stem, stages, nn.Linear(channels, classes))
