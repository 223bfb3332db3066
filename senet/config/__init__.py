"""What a run computes: settings in classes that check themselves, read from YAML.

Everything that can change a result is here; everything that cannot (paths, workers, device) is a flag of the launcher.
No module in here imports torch, so that a config can be checked anywhere in a fraction of a second.

A config file is a mapping of the fields of `Config` plus two more keys: `base`, a file (relative to this one) that it
changes, and `variants`, named changes of it; `FILE:NAME` names a variant. Mappings merge key by key, everything else
replaces, and what changes the class of a setting drops what it inherits for the other class.
"""

# All of them are for others to import from here.
# isort: off
# fmt: off
from senet.config.batch import crop_at, divide_batch
from senet.config.check import check, warnings
from senet.config.files import find
from senet.config.json_schema import json_schema
from senet.config.load import difference, from_dict, load, read, to_dict, variants
from senet.config.nets import SE, Basic, Bottleneck, CifarStem, Net, ResNet, SqueezeExcitation, Stem, Timm
from senet.config.schema import (
    EMA, LAMB, LARS, SGD, Adam, Augment, AutoAugment, BatchNorm, Cifar, Cifar10, Cifar100, Config, ConstantWarmup,
    Cosine, Data, FineTune, Folder, FolderAugment, Grow, LinearWarmup, Optim, OptimSetting, Plateau, Policy, Poly,
    RandAugment, Schedule, Step, Synthetic, TimmOptim, Warmup,
)
