"""What a run computes, as frozen dataclasses that check their types and ranges.

Where settings exclude each other there is a class for each case, so that what does not apply cannot be written: step or
cosine, an image folder or CIFAR, a residual network or one of timm. A key of such a union tells its classes apart.
"""

from dataclasses import field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from senet.config.fields import BelowOne, Count, NotNegative, Number, Positive, Share, Text, Whole, YesNo, dataclass
from senet.config.nets import Bottleneck, NetSetting
from senet.config.tagged import Tagged

RGB = tuple[Number, Number, Number]
PositiveRGB = tuple[Positive, Positive, Positive]

# ----------------------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class AutoAugment:
    """A policy of AutoAugment, learnt on ImageNet, or TrivialAugment's one random operation an image."""

    name: Literal["autoaugment", "trivialaugment"] = "autoaugment"


@dataclass(frozen=True)
class RandAugment:
    """Some random operations an image, all of one strength."""

    name: Literal["randaugment"] = "randaugment"
    ops: Count = 2  # an image
    magnitude: Annotated[int, Field(strict=True, ge=0, le=30)] = 9


# "alternate": by chance in the first epoch, then every other way, so that two epochs show an image and its mirror image
Flip = YesNo | Literal["alternate"]
Policy = AutoAugment | RandAugment


@dataclass(frozen=True)
class Grow:
    """Progressive resizing: training images grow from `start` to the data's `crop`."""

    start: Count  # pixels in the first epoch
    epochs: Positive  # until they are grown


@dataclass(frozen=True)
class Augment:
    """What is done to training images beyond crop and flip: nothing in the paper. Numbers limit uniform draws."""

    rotate: Annotated[float, Field(strict=True, ge=0, le=180)] = 0.0  # degrees either way; the released models: 10
    pixel_jitter: NotNegative = 0.0  # levels of 255 added to each channel, either way; the released models: 20
    color_jitter: tuple[Share, Share, Share, Annotated[float, Field(strict=True, ge=0, le=0.5)]] = (
        0.0, 0.0, 0.0, 0.0
    )  # brightness, contrast, saturation, hue (turns), either way  # fmt: skip
    lighting: NotNegative = 0.0  # AlexNet's noise along the principal colours: standard deviation, there 0.1
    erase: Share = 0.0  # random erasing: probability
    cutout: Whole = 0  # side of an erased square in pixels
    mixup: Share = 0.0  # alpha of the Beta distribution; with cutmix as well, each image gets one of the two
    cutmix: Share = 0.0  # likewise
    repeats: Count = 1  # copies of an image in a batch, each augmented its own way
    balance: YesNo = False  # classes take turns, however many images they have

    @property
    def active(self) -> bool:
        """Whether anything in here differs from doing nothing."""
        return self != type(self)()


@dataclass(frozen=True)
class FolderAugment(Augment):
    """What only files can have done to them as well: it needs more than the pixels that the net sees."""

    policy: Annotated[Policy, Tagged(name="autoaugment")] | None = None
    grow: Grow | None = None


@dataclass(frozen=True)
class Folder:
    """Any set in ImageNet's layout: train/CLASS/*.JPEG, val/CLASS/*.JPEG, or shards of it."""

    set: Literal["folder"] = "folder"
    classes: Count = 1000
    crop: Count = 224  # what the net sees
    resize: Count = 256  # validation: shorter side before the centre crop
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"  # of all images, with antialiasing
    area: tuple[Positive, Positive] = (0.08, 1.0)  # training: of the random crop, as a share of the image
    aspect: tuple[Positive, Positive] = (0.75, 4 / 3)
    flip: Flip = True  # training: horizontal, with probability one half
    augment: FolderAugment = FolderAugment()
    mean: RGB = (0.485, 0.456, 0.406)  # of pixels in 0..1
    std: PositiveRGB = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Cifar:
    """CIFAR's 32x32 images. `mean` and `std` are those of all pixels of the training set; the widespread std
    (.2023, ...) is an average over batches.
    """

    pad: Whole = 4  # training: zeros on each side before the random crop
    flip: Flip = True  # training: horizontal, with probability one half
    augment: Augment = Augment()
    crop: ClassVar[int] = 32
    train_images: ClassVar[int] = 50_000
    val_images: ClassVar[int] = 10_000


@dataclass(frozen=True)
class Cifar10(Cifar):
    set: Literal["cifar10"] = "cifar10"
    mean: RGB = (0.4914, 0.4822, 0.4465)
    std: PositiveRGB = (0.2470, 0.2435, 0.2616)
    classes: ClassVar[int] = 10


@dataclass(frozen=True)
class Cifar100(Cifar):
    set: Literal["cifar100"] = "cifar100"
    mean: RGB = (0.5071, 0.4865, 0.4409)
    std: PositiveRGB = (0.2673, 0.2564, 0.2762)
    classes: ClassVar[int] = 100


@dataclass(frozen=True)
class Synthetic:
    """Random pixels and labels, held in memory: for measuring speed and trying the machinery."""

    set: Literal["synthetic"] = "synthetic"
    classes: Count = 1000
    crop: Count = 224
    train_images: Count = 1_281_167
    val_images: Count = 50_000
    augment: Augment = Augment()
    mean: RGB = (0.485, 0.456, 0.406)
    std: PositiveRGB = (0.229, 0.224, 0.225)


Data = Folder | Cifar10 | Cifar100 | Synthetic


# -------------------------------------------------------------------------------------------------------------- recipe


@dataclass(frozen=True)
class Optim:
    """What all optimisers have."""

    lr: NotNegative = 0.6  # for the global batch, as written: never scaled behind your back
    weight_decay: NotNegative = 1e-4
    decay_norm_and_bias: YesNo = True  # False: normalisation layers and biases are left out, by module type
    label_smoothing: BelowOne = 0.0


@dataclass(frozen=True)
class SGD(Optim):
    """SGD as the paper has it (section 5.1)."""

    name: Literal["sgd"] = "sgd"
    momentum: BelowOne = 0.9
    nesterov: YesNo = False


@dataclass(frozen=True)
class LARS(Optim):
    """SGD for large batches (You et al. 2017): what decays has a rate by the norms of its weights and gradients."""

    name: Literal["lars"] = "lars"
    decay_norm_and_bias: YesNo = False
    momentum: BelowOne = 0.9
    nesterov: YesNo = False
    trust_coeff: Positive = 0.001
    eps: NotNegative = 1e-8


@dataclass(frozen=True)
class Adam(Optim):
    """Adam and its kin. A recipe of SGD has a learning rate far too high for them."""

    name: Literal["adamw", "adam"] = "adamw"
    lr: NotNegative = 1e-3
    weight_decay: NotNegative = 0.01
    decay_norm_and_bias: YesNo = False
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)
    eps: Positive = 1e-8


@dataclass(frozen=True)
class LAMB(Optim):
    """Adam for large batches, with rates of layers as LARS has them (You et al. 2019)."""

    name: Literal["lamb"] = "lamb"
    lr: NotNegative = 5e-3
    weight_decay: NotNegative = 0.02
    decay_norm_and_bias: YesNo = False
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)
    eps: Positive = 1e-6
    max_grad_norm: Positive = 1.0  # the gradient is clipped to it


@dataclass(frozen=True)
class TimmOptim(Optim):
    """Any other optimiser of the library timm, by its name there."""

    timm: Text = field(kw_only=True)
    name: Literal["timm"] = "timm"
    arguments: dict[Text, Any] = field(default_factory=dict)  # checked when the optimiser is made


OptimSetting = Annotated[SGD | LARS | Adam | LAMB | TimmOptim, Tagged({"timm": "timm"}, name="sgd")]


@dataclass(frozen=True)
class LinearWarmup:
    """The learning rate rises from `lr` to that of the recipe."""

    shape: Literal["linear"] = "linear"
    epochs: Positive = 5.0
    lr: NotNegative = 0.0


@dataclass(frozen=True)
class ConstantWarmup:
    """The learning rate stays at `lr` first (ResNet-110 of "Identity Mappings")."""

    epochs: Positive
    lr: NotNegative
    shape: Literal["constant"] = "constant"


Warmup = LinearWarmup | ConstantWarmup
OptionalWarmup = Annotated[Warmup, Tagged(shape="linear")] | None


@dataclass(frozen=True)
class Step:
    """The learning rate is multiplied by `gamma` at each of the `milestones`."""

    shape: Literal["step"] = "step"
    milestones: tuple[NotNegative, ...] = (30.0, 60.0, 90.0)  # epochs
    gamma: NotNegative = 0.1
    warmup: OptionalWarmup = None


@dataclass(frozen=True)
class Cosine:
    """The learning rate falls along half a cosine period to 0, over the epochs that follow the warm-up."""

    shape: Literal["cosine"] = "cosine"
    warmup: OptionalWarmup = None


@dataclass(frozen=True)
class Poly:
    """The learning rate falls to 0 as a power of what is left of the epochs that follow the warm-up."""

    shape: Literal["poly"] = "poly"
    power: Positive = 2.0
    warmup: OptionalWarmup = None


@dataclass(frozen=True)
class Plateau:
    """The learning rate is multiplied by `factor` whenever the validation loss has stopped falling (sections 5.1, 6);
    the rules and names are those of torch's ReduceLROnPlateau.
    """

    shape: Literal["plateau"] = "plateau"
    factor: BelowOne = 0.1
    patience: Whole = 10  # epochs without a better loss that are put up with
    threshold: BelowOne = 1e-4  # a loss is better if it is lower than the best by this part of it
    warmup: OptionalWarmup = None


Schedule = Step | Cosine | Poly | Plateau


@dataclass(frozen=True)
class EMA:
    """An exponential moving average of the weights, which is validated beside them."""

    decay: BelowOne = 0.9999  # a step; torchvision's 0.99998 is for updates every 32 steps
    warmup: YesNo = True  # early steps decay less: step t, from 0, by (1 + t) / (10 + t)


@dataclass(frozen=True)
class BatchNorm:
    """How batch normalisation is trained; by default each rank gathers statistics from its own images."""

    sync: YesNo = False  # SyncBatchNorm: each batch's statistics are those of all ranks; needs GPUs
    freeze: Whole | None = None  # epochs after which statistics and parameters stay as they are
    recalibrate: Whole = 0  # steps on whose images statistics are computed anew when training ends


@dataclass(frozen=True)
class FineTune:
    """What a run that starts from trained weights (--init) does with them."""

    freeze: tuple[Literal["stem", 1, 2, 3, 4, 5], ...] = ()  # parts that stay as they are: stem, stages by number
    head_lr: Positive = 1.0  # learning rate of the classifier, in units of the others'


@dataclass(frozen=True)
class Config:
    """All that decides a run's result; paths, workers and devices are flags."""

    net: NetSetting = Bottleneck()
    data: Annotated[Data, Tagged(set="folder")] = Folder()
    optim: OptimSetting = SGD()
    schedule: Annotated[Schedule, Tagged(shape="step")] = Step()
    ema: EMA | None = None
    bn: BatchNorm = BatchNorm()
    batch: Count = 1024  # global, over all ranks
    epochs: Whole = 100
    finetune: FineTune = FineTune()
    # tf32: fp32 numbers, whose convolutions and products a GPU makes of 10 bits of mantissa; on a CPU it is fp32
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    compress: Literal["none", "bf16"] = "none"  # gradients on their way between ranks; one rank alone sends none
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**32)] = 0
