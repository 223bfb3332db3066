"""Residual networks as data: ResNet, ResNeXt, SENet-154 and CIFAR's, plain and SE (section 4, tables 1 and 10-16)."""

import torch.nn.functional as F
from torch import Tensor, nn

from senet import config
from senet.models.layers import se_slot
from senet.models.network import Staged, TailBlock
from senet.models.se import SEBlock


def conv(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Return a convolution without bias that keeps the map's size at stride 1."""
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)


class Branch(nn.Sequential):
    """The residual branch, a sequence of named layers."""

    def add(self, **layers: nn.Module) -> None:
        """Append layers under their names."""
        for name, layer in layers.items():
            self.add_module(name, layer)

    @property
    def norm(self) -> nn.Module:
        """Return the BN at the end of the branch; the identity if it ends otherwise."""
        return self[-1] if isinstance(self[-1], nn.BatchNorm2d) else IDENTITY

    def inner(self, x: Tensor) -> Tensor:
        """Compute the branch up to `norm`."""
        for layer in self:
            x = x if layer is self.norm else layer(x)
        return x


IDENTITY = nn.Identity()


class Block(TailBlock):
    """A residual unit with a slot at each place where the paper puts an SE block (figure 5, section 6.5).

    A slot holds an SE block or the identity. [N, inputs, H, W] -> [N, width * expansion, H / stride, W / stride].
    """

    def __init__(self, net: config.ResNet, inputs: int, width: int, stride: int, se: config.SE | None) -> None:
        super().__init__()
        outputs = width * net.expansion
        kind = bottleneck if isinstance(net, config.Bottleneck) else basic
        self.branch = kind(net, inputs, width, stride, se)  # type: ignore[arg-type]
        self.shortcut = self._shortcut(net, inputs, outputs, stride)
        place = se.place if se else None
        self.se_pre = se_slot(inputs, se, place == "pre")
        self.se = se_slot(outputs, se, place == "standard")
        self.se_identity = se_slot(outputs, se, place == "identity")
        self.se_post = se_slot(outputs, se, place == "post")
        self.tail = self.plain  # see `senet.execution.execution.prepare`

    def _shortcut(self, net: config.ResNet, inputs: int, outputs: int, stride: int) -> nn.Module:
        if inputs == outputs and stride == 1:
            return nn.Identity()
        layers = Branch()
        layers.add(conv=conv(inputs, outputs, 3 if net.projection == "conv3x3" and stride > 1 else 1, stride))
        if not net.preactivation:
            layers.add(bn=nn.BatchNorm2d(outputs))
        return layers

    @property
    def fusable(self) -> bool:  # type: ignore[override]
        """Whether the branch ends with BN, and SE, if it stands before the sum, averages the map."""
        averages = not isinstance(self.se, SEBlock) or self.se.settings.squeeze == "avg"
        return averages and self.branch.norm is not IDENTITY

    def forward(self, x: Tensor) -> Tensor:
        """Compute se_post(relu(se_identity(shortcut(x)) + se(branch(se_pre(x))))), from the last BN on in the tail."""
        entry, skipped = self.enter(x)
        inner = self.branch.inner(self.se_pre(entry))
        shortcut = self.se_identity(self.shortcut(skipped))
        return self.se_post(self.tail(inner, shortcut, self.branch.norm, self.se))

    def enter(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the branch and what the shortcut start from."""
        return x, x

    @staticmethod
    def plain(inner: Tensor, shortcut: Tensor, norm: nn.Module, se: nn.Module) -> Tensor:
        """Compute the end of the block as figure 5 has it."""
        return F.relu(shortcut + se(norm(inner)))


class PreactivationBlock(Block):
    """BN and ReLU before the convolutions ("Identity Mappings"); a projection starts from the activated input."""

    fusable = False

    def __init__(self, net: config.ResNet, inputs: int, width: int, stride: int, se: config.SE | None) -> None:
        super().__init__(net, inputs, width, stride, se)
        self.bn = nn.BatchNorm2d(inputs)

    def enter(self, x: Tensor) -> tuple[Tensor, Tensor]:
        active = F.relu(self.bn(x))
        return active, x if isinstance(self.shortcut, nn.Identity) else active

    @staticmethod
    def plain(inner: Tensor, shortcut: Tensor, norm: nn.Module, se: nn.Module) -> Tensor:
        return shortcut + se(norm(inner))


def basic(net: config.Basic, inputs: int, width: int, stride: int, se: config.SE | None) -> Branch:
    """Return two 3x3 convolutions with BN; in a pre-activation block, no BN ends them."""
    outputs = width * net.expansion
    layers = Branch()
    layers.add(
        conv1=conv(inputs, width, 3, stride), bn1=nn.BatchNorm2d(width), relu1=nn.ReLU(), conv2=conv(width, outputs, 3)
    )
    if not net.preactivation:
        layers.add(bn2=nn.BatchNorm2d(outputs))
    if net.relu2:
        layers.add(relu2=nn.ReLU())
    return layers


def bottleneck(net: config.Bottleneck, inputs: int, width: int, stride: int, se: config.SE | None) -> Branch:
    """Return convolutions 1x1, 3x3 (in groups) and 1x1 with BN."""
    narrow, outputs = int(width * net.reduce), width * net.expansion
    first, second = (stride, 1) if net.stride_at == "conv1x1" else (1, stride)
    layers = Branch()
    layers.add(conv1=conv(inputs, narrow, 1, first), bn1=nn.BatchNorm2d(narrow), relu1=nn.ReLU())
    layers.add(conv2=conv(narrow, width, 3, second, net.groups), bn2=nn.BatchNorm2d(width), relu2=nn.ReLU())
    if se and se.place == "conv3x3":
        layers.add(se=SEBlock(width, se))
    layers.add(conv3=conv(width, outputs, 1))
    if not net.preactivation:
        layers.add(bn3=nn.BatchNorm2d(outputs))
    return layers


def stem(net: config.ResNet) -> tuple[Branch, int]:
    """Return what stands before stage 2, and the channels that it puts out."""
    layers = Branch()
    if isinstance(net.stem, config.CifarStem):
        outputs = net.stem.width or net.widths[0]
        layers.add(conv=conv(3, outputs, 3))
    elif net.stem.kind == "conv7x7":
        outputs = 64
        layers.add(conv=conv(3, 64, 7, 2))
    else:
        outputs = 128
        layers.add(conv1=conv(3, 64, 3, 2), bn1=nn.BatchNorm2d(64), relu1=nn.ReLU())
        layers.add(conv2=conv(64, 64, 3), bn2=nn.BatchNorm2d(64), relu2=nn.ReLU(), conv=conv(64, 128, 3))
    if not net.preactivation:
        layers.add(bn=nn.BatchNorm2d(outputs), relu=nn.ReLU())
    if isinstance(net.stem, config.Stem):
        # The released Caffe models pool without padding and round up: the same size, another window.
        ceil = net.stem.maxpool == "ceil"
        layers.add(pool=nn.MaxPool2d(3, 2, padding=0 if ceil else 1, ceil_mode=ceil))
    return layers, outputs


class ResNet(Staged):
    """[N, 3, H, W] -> logits [N, classes]. Stages are numbered as in the paper: 2 to 5, CIFAR 2 to 4."""

    def __init__(self, net: config.ResNet, classes: int) -> None:
        block: type[Block] = PreactivationBlock if net.preactivation else Block
        (first, channels), stages, last = stem(net), {}, Branch()
        for stage, (count, width) in enumerate(zip(net.blocks, net.widths, strict=True), start=2):
            se = net.se if net.se and (net.se.stages is None or stage in net.se.stages) else None
            units = stages[f"stage{stage}"] = nn.Sequential()
            for index in range(count):
                units.append(block(net, channels, width, 2 if stage > 2 and index == 0 else 1, se))
                channels = width * net.expansion
        if net.preactivation:
            last.add(bn=nn.BatchNorm2d(channels), relu=nn.ReLU())
        super().__init__(first, stages, nn.Linear(channels, classes), last, nn.Dropout(net.dropout), fan_by_group=False)
        self.small = isinstance(net.stem, config.CifarStem)
        self.side = 32 if self.small else 224
        for unit in self.modules() if net.zero_init else ():
            if isinstance(unit, Block):
                *_, norm = (layer for layer in unit.branch if isinstance(layer, nn.BatchNorm2d))
                nn.init.zeros_(norm.weight)
