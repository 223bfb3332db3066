"""Files of weights, read without running anything that is in them, and written."""

import argparse
import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from senet.errors import UsageError
from senet.system.files import replace

EXPORTED = "model.safetensors"  # in a folder of launch.export, of timm and of the Hugging Face hub
FACTS = "senet"  # the key under which a file of this project says what its weights are of
# Where programs keep the state dict among other things, and that of averaged weights.
PLAIN = ("state_dict", "model", "model_state_dict", "model_state", "net", "weights")
AVERAGED = ("state_dict_ema", "ema_state_dict", "model_ema", "ema")
# What wraps a net, and names it in front of all its parts: DDP, torch.compile, Lightning, averages.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.", "ema.")
# What training programs store beside the weights (timm's and torchvision's their flags): it only holds values.
HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    np.dtypes.Float64DType,
    np.dtypes.Float32DType,
    np.dtypes.Int64DType,
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),  # type: ignore[attr-defined]
    (np._core.multiarray.scalar, "numpy._core.multiarray.scalar"),  # type: ignore[attr-defined]
]


class IsCheckpoint(UsageError):
    """A checkpoint of this program, for `senet.run.checkpoint` to read."""


class File(NamedTuple):
    """The contents of a file: a state dict with names as its net gave them, and what the file says of itself."""

    state: dict[str, Tensor]
    facts: dict[str, Any]
    averaged: bool  # the weights are an average over training


def read(path: Path, averaged: bool = False) -> File:
    """Return the weights in a file of safetensors or of torch.save: of its net, or `averaged` ones if it has both.

    Raises UsageError if it cannot be read, holds no weights, or could run code if it were read, and IsCheckpoint.
    """
    content, facts = _safetensors(path) if _is_safetensors(path) else (_torch(path), {})
    if isinstance(content, Mapping) and {"format", "progress", "net"} <= content.keys():
        raise IsCheckpoint(f"{path}: a checkpoint of this program, which holds more than weights")
    if isinstance(content, Mapping) and isinstance(content.get(FACTS), Mapping):
        facts = dict(content[FACTS])
    state, found = _state(content, averaged)
    if not state:
        raise UsageError(f"{path}: no weights in it; give a file with a state dict")
    return File(_unwrapped(state), facts, found)


def write(
    path: Path, state: Mapping[str, Tensor], facts: Mapping[str, Any] | None = None, dtype: torch.dtype | None = None
) -> None:
    """Write a state dict, whole or not at all: by torch.save if the name ends in .pt, .pth or .bin, as safetensors
    otherwise. Weights in the names of this project bring `facts`. Kernels and matrices are rounded to `dtype`, as
    autocast rounds them; vectors (BN, biases) and counters are not.
    """
    tensors = {
        name: value.detach().cpu().to(dtype if value.dim() > 1 and value.is_floating_point() else None).contiguous()
        for name, value in state.items()
    }
    if path.suffix in (".pt", ".pth", ".bin"):
        pickled = {"state_dict": tensors, FACTS: dict(facts)} if facts else tensors
        replace(path, lambda temporary: torch.save(pickled, temporary))
    else:
        notes = {"format": "pt"} | ({FACTS: json.dumps(facts)} if facts else {})
        content = safetensors.torch.save(tensors, notes)  # its save_file lets nobody else read the file
        replace(path, lambda temporary: temporary.write_bytes(content))


def _is_safetensors(path: Path) -> bool:
    """Tell by how it begins: the length of its header, which is JSON."""
    with path.open("rb") as file:
        begin = file.read(9)
    return begin[8:] == b"{"


def _safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get(FACTS, "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118 (no mapping)
    except (safetensors.SafetensorError, ValueError) as error:
        raise UsageError(f"{path}: damaged: {error}; get it again") from None


def _torch(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            raise UsageError(
                f"{path}: holds more than weights ({found[1].rstrip('.')}), and reading that can run code; save the "
                "weights alone, by torch.save(model.state_dict(), FILE) or as safetensors"
            ) from None
        raise UsageError(f"{path}: not a file of weights; give one of torch.save or safetensors") from None
    except (EOFError, KeyError, IndexError, ValueError, RuntimeError, OSError) as error:
        if isinstance(error, OSError) and error.filename:
            raise
        if "TorchScript" in str(error):
            raise UsageError(f"{path}: a TorchScript program, which can run code; torch.save its state dict") from None
        what = "truncated or damaged" if "zip archive" in str(error) else "not a file of weights, or a damaged one"
        raise UsageError(f"{path}: {what}; get it again") from None


def _state(content: Any, averaged: bool) -> tuple[dict[str, Tensor], bool]:
    """Return the state dict in `content`, however deep, and whether it is one of averaged weights."""
    if not isinstance(content, Mapping):
        return {}, False
    orders = AVERAGED + PLAIN if averaged else PLAIN + AVERAGED
    for key in orders:
        state, inner = _state(content.get(key), averaged)
        if state:
            return state, inner or key in AVERAGED
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}, False


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict without the names of wrappers, and without the counter of torch's AveragedModel."""
    state = {name.replace("._orig_mod.", "."): value for name, value in state.items() if name != "n_averaged"}
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in state)), ""):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state
