"""The networks as settings, what `net` in a config may hold: a class for each family in `senet.models`."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from senet.config.fields import BelowOne, Count, Positive, Text, YesNo, dataclass
from senet.config.tagged import Tagged


@dataclass(frozen=True)
class SqueezeExcitation:
    """The Squeeze-and-Excitation block (section 3) and what the paper tries of it (tables 10-12 and 16)."""

    ratio: Count = 16
    width: Count | None = None  # of the layer between; None: a channel in `ratio` of the map's (NVIDIA's nets: 16)
    multiple: Count = 1  # that width is rounded to a multiple, and is at least one (nets of timm: 8)
    squeeze: Literal["avg", "max", "none"] = "avg"
    gate: Literal["sigmoid", "tanh", "relu"] = "sigmoid"
    bias: YesNo = True  # of the two FC layers: section 5 and the released nets have it, section 6 has not

    def between(self, channels: int) -> int:
        """Return the width of the layer between for a map of so many channels."""
        rounded = (channels // self.ratio + self.multiple // 2) // self.multiple * self.multiple
        return self.width or max(self.multiple, rounded)


@dataclass(frozen=True)
class SE(SqueezeExcitation):
    """Where the blocks of a residual network stand (tables 13-15)."""

    place: Literal["standard", "pre", "post", "identity", "conv3x3"] = "standard"
    stages: tuple[Count, ...] | None = None  # the paper's numbers: 2-5, CIFAR 2-4; None is every stage


@dataclass(frozen=True)
class Stem:
    """What stands before stage 2 of a network for ImageNet: a convolution of stride 2, or three, and max pooling."""

    kind: Literal["conv7x7", "conv3x3x3"] = "conv7x7"
    maxpool: Literal["padded", "ceil"] = "padded"  # ceil: the released Caffe models


@dataclass(frozen=True)
class CifarStem:
    """One 3x3 convolution of stride 1, for images of 32x32 pixels."""

    kind: Literal["cifar"] = "cifar"
    width: Count | None = None  # channels; None: those of stage 2


@dataclass(frozen=True)
class ResNet:
    """A residual network as data (section 4, table 1); `Basic` and `Bottleneck` are its two kinds of block.

    `widths` are those of the 3x3 convolutions, a stage each; a stage puts out `expansion` times its width.
    """

    family: Literal["resnet"] = "resnet"
    blocks: Annotated[tuple[Count, ...], Field(min_length=1, max_length=4)] = (3, 4, 6, 3)
    widths: tuple[Count, ...] = (64, 128, 256, 512)
    expansion: Count = 4
    stem: Annotated[Stem | CifarStem, Tagged(kind="conv7x7")] = Stem()
    projection: Literal["conv1x1", "conv3x3"] = "conv1x1"  # of the shortcuts that stride
    preactivation: YesNo = False
    dropout: BelowOne = 0.0
    zero_init: YesNo = False  # the last BN of each branch starts at 0; not in the paper
    se: SE | None = None


@dataclass(frozen=True)
class Basic(ResNet):
    """Blocks of two 3x3 convolutions."""

    block: Literal["basic"] = "basic"
    relu2: YesNo = False  # after the second BN, before SE: as in timm's legacy_seresnet18 and -34 alone


@dataclass(frozen=True)
class Bottleneck(ResNet):
    """Blocks of 1x1, 3x3, 1x1. ResNeXt-50 32x4d is ResNet-50 with widths doubled, expansion 2 and 32 groups."""

    block: Literal["bottleneck"] = "bottleneck"
    groups: Count = 1  # of the 3x3
    reduce: Positive = 1.0  # width of the first 1x1 as a fraction of the 3x3's (SENet-154: a half)
    stride_at: Literal["conv1x1", "conv3x3"] = "conv1x1"  # v1 (the paper) or v1.5


@dataclass(frozen=True)
class Timm:
    """A network of the library timm, by its name there."""

    timm: Text
    family: Literal["timm"] = "timm"


@dataclass(frozen=True)
class Fixed:
    """A network of a family whose only setting is SE."""

    family: Literal["bn_inception"]
    se: SqueezeExcitation | None = None


@dataclass(frozen=True)
class InceptionResNetV2:
    """Inception-ResNet-v2 for 75 pixels or more; SE scales each branch. Its module explains the numbers of blocks."""

    family: Literal["inception_resnet_v2"] = "inception_resnet_v2"
    blocks: tuple[Count, Count, Count] = (5, 20, 5)  # at 35x35, 17x17 and 8x8 pixels; published: 10, 20, 10
    dropout: BelowOne = 0.2
    smallest: ClassVar[int] = 75
    se: SqueezeExcitation | None = None


@dataclass(frozen=True)
class VGG16:
    """VGG-16 with BN; SE follows the ReLU of each convolution (section 3.3)."""

    family: Literal["vgg16"] = "vgg16"
    hidden: Count = 4096  # width of the two FC layers before the classifier
    dropout: BelowOne = 0.5  # behind each of them
    smallest: ClassVar[int] = 32
    se: SqueezeExcitation | None = None


@dataclass(frozen=True)
class MobileNetSE(SqueezeExcitation):
    place: Literal["pointwise", "depthwise"] = "pointwise"  # the convolution that the block follows


@dataclass(frozen=True)
class MobileNet:
    """MobileNet; `width` multiplies the channels of all layers."""

    family: Literal["mobilenet"] = "mobilenet"
    width: Positive = 1.0
    se: MobileNetSE | None = None


@dataclass(frozen=True)
class ShuffleNetSE(SqueezeExcitation):
    place: Literal["sum", "every"] = "sum"  # on the branch of units that end with a sum, or of those that stride too


@dataclass(frozen=True)
class ShuffleNet:
    """ShuffleNet 1x."""

    family: Literal["shufflenet"] = "shufflenet"
    groups: Literal[1, 2, 3, 4, 8] = 3
    se: ShuffleNetSE | None = None


@dataclass(frozen=True)
class ShakeShakeSE(SqueezeExcitation):
    place: Literal["mixture", "branches"] = "mixture"  # of the two branches, or each before they are mixed


@dataclass(frozen=True)
class ShakeShake:
    """Shake-Shake for 32x32 pixels: `blocks` units in each stage, of two branches that are mixed at random."""

    family: Literal["shake_shake"] = "shake_shake"
    blocks: Annotated[tuple[Count, ...], Field(min_length=1, max_length=4)] = (4, 4, 4)
    width: Count = 96  # of a branch of stage 2, or of each of its groups; each further stage doubles it
    backward: Literal["shake", "even"] = "shake"  # how the branches share the gradient: by another draw, or by halves
    se: ShakeShakeSE | None = None


@dataclass(frozen=True)
class ShakeBasic(ShakeShake):
    """Branches of two 3x3 convolutions."""

    block: Literal["basic"] = "basic"


@dataclass(frozen=True)
class ShakeBottleneck(ShakeShake):
    """Branches of 1x1, 3x3, 1x1, as in ResNeXt."""

    block: Literal["bottleneck"] = "bottleneck"
    groups: Count = 1  # of the 3x3


Net = (
    Basic
    | Bottleneck
    | Fixed
    | InceptionResNetV2
    | VGG16
    | MobileNet
    | ShuffleNet
    | ShakeBasic
    | ShakeBottleneck
    | Timm
)
NetSetting = Annotated[Net, Tagged(implied={"timm": "timm"}, family="resnet", block="bottleneck")]
