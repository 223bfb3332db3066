"""The forms of a net: each is written into a folder, and read again as those who get it will read it."""

import importlib.util
import io
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from senet.config import Folder, Timm, to_dict
from senet.errors import UsageError
from senet.models.timm import from_folder
from senet.run.load import Trained, load
from senet.system.files import replace, write_text
from senet.weights import convert, files

Run = Callable[[Tensor], Tensor]  # images [N, 3, H, W] -> logits [N, classes]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}  # of the largest logit: ten roundings


class Form(NamedTuple):
    """A way to write a net. `write` gets it, the folder, `facts` and the type of the weights in the file, and returns
    what was written as it runs when read again; None if there is nothing here to run it.
    """

    file: str
    write: Callable[[Trained, Path, Mapping[str, Any], torch.dtype], Run | None]
    usage: str  # Python that uses it, in the folder


def facts(trained: Trained) -> dict[str, Any]:
    """Return what one must know to use a net, as plain values: how images become its input, and its classes."""
    data = trained.config.data
    side = {"resize": data.resize, "interpolation": data.interpolation} if isinstance(data, Folder) else {}
    preprocessing = {
        "input": "images [N, 3, crop, crop], RGB, values (pixel / 255 - mean) / std",
        **side,
        "crop": data.crop,
        "mean": list(data.mean),
        "std": list(data.std),
    }
    return {"origin": trained.origin, "preprocessing": preprocessing, "classes": list(trained.classes)}


def deviation(trained: Trained, run: Run) -> float:
    """Return how far logits of random images are from the source's, as a share of the largest, in two batches."""
    side, generator = trained.config.data.crop, torch.Generator().manual_seed(0)
    apart = []
    for images in (torch.randn(size, 3, side, side, generator=generator) for size in (3, 1)):
        with torch.inference_mode():
            expected = trained.net.eval()(images)
            apart.append(float((run(images) - expected).abs().max() / expected.abs().max()))
    return max(apart)


def _safetensors(trained: Trained, folder: Path, facts: Mapping[str, Any], dtype: torch.dtype) -> Run:
    file = folder / files.EXPORTED
    more = {"config": to_dict(trained.config), "classes": list(trained.classes)}
    files.write(file, trained.net.state_dict(), more, dtype)
    return load(str(folder)).net.eval()


def _pt2(trained: Trained, folder: Path, facts: Mapping[str, Any], dtype: torch.dtype) -> Run:
    file = folder / "model.pt2"
    content = io.BytesIO()  # torch warns of a file with another ending, as a temporary one has
    torch.export.save(_program(trained), content, extra_files={"senet.json": json.dumps(facts)})
    replace(file, lambda temporary: temporary.write_bytes(content.getbuffer()))
    module: nn.Module = torch.export.load(file).module()
    return module


def _onnx(trained: Trained, folder: Path, facts: Mapping[str, Any], dtype: torch.dtype) -> Run | None:
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"--to onnx needs the package {package}: pip install onnx onnxscript")
    file = folder / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about its own future
        program: Any = torch.onnx.export(
            _program(trained), input_names=["images"], output_names=["logits"], dynamo=True, verbose=False
        )
    program.model.metadata_props["senet"] = json.dumps(facts)
    replace(file, lambda temporary: program.save(temporary, external_data=False))
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _timm(trained: Trained, folder: Path, facts: Mapping[str, Any], dtype: torch.dtype) -> Run:
    config = trained.config
    if isinstance(config.net, Timm):
        name, net = config.net.timm, trained.net
    else:
        try:
            name, net, _ = convert.counterpart(config.net, trained.net.state_dict(), "timm")
        except convert.NoCounterpart as error:
            raise UsageError(f"{error}; safetensors, onnx and pt2 take any network") from None
    how = facts["preprocessing"]
    theirs: Any = getattr(net, "pretrained_cfg", {})
    pretrained = {key: theirs[key] for key in ("first_conv", "classifier") if theirs.get(key)}
    pretrained |= {"input_size": [3, how["crop"], how["crop"]], "mean": how["mean"], "std": how["std"]}
    pretrained |= {"crop_pct": how["crop"] / how.get("resize", how["crop"]), "crop_mode": "center"}
    pretrained |= {"interpolation": how.get("interpolation", "bilinear"), "num_classes": config.data.classes}
    described = {"architecture": name, "num_classes": config.data.classes, "pretrained_cfg": pretrained}
    if trained.classes:
        described["label_names"] = list(trained.classes)
    files.write(folder / files.EXPORTED, net.state_dict(), dtype=dtype)
    write_text(folder / "config.json", json.dumps(described, indent=1))
    return from_folder(folder).eval()


def _program(trained: Trained) -> torch.export.ExportedProgram:
    """Return a net as a graph for batches of any size."""
    side = trained.config.data.crop
    net = trained.net.eval().to(memory_format=torch.contiguous_format)
    return torch.export.export(net, (torch.randn(2, 3, side, side),), dynamic_shapes=({0: torch.export.Dim("batch")},))


FORMS = {
    "safetensors": Form(
        files.EXPORTED,
        _safetensors,
        'from senet.run.load import load\n\nnet = load(".").net.eval()',
    ),
    "onnx": Form(
        "model.onnx",
        _onnx,
        'import onnxruntime\n\nsession = onnxruntime.InferenceSession("model.onnx")\n'
        '(logits,) = session.run(["logits"], {"images": images})  # float32 [N, 3, H, W]',
    ),
    "pt2": Form("model.pt2", _pt2, 'import torch\n\nnet = torch.export.load("model.pt2").module()'),
    "timm": Form(
        files.EXPORTED,
        _timm,
        'import timm\n\nnet = timm.create_model("local-dir:.", pretrained=True).eval()\n'
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(net))",
    ),
}
