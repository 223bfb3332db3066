"""Single images for a net, one at a time: the pixels of the validation, without a loader."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from senet.config import Data, Folder
from senet.data.pixels import decode, head
from senet.data.samples import centre_crop


class Preprocess:
    """Resizes, crops and normalises an image as the validation of a data set does, in PIL's pixels."""

    def __init__(self, data: Data) -> None:
        self.data = data
        self.resize = data.resize if isinstance(data, Folder) else data.crop
        how = data.interpolation if isinstance(data, Folder) else "bilinear"
        self.interpolation = Image.Resampling[how.upper()]

    def __call__(self, image: str | os.PathLike[str] | bytes | Image.Image) -> Tensor:
        """Make a path, the bytes of an image file or a PIL image into [3, crop, crop], float32.

        Raises ValueError, SyntaxError or OSError for what cannot be decoded.
        """
        if not isinstance(image, Image.Image):
            content = image if isinstance(image, bytes) else Path(image).read_bytes()
            head(content)
            image = decode(content)
        sizes, corners = centre_crop(np.array([[image.height, image.width]]), self.resize, self.data.crop)
        (height, width), (y, x) = sizes[0].tolist(), corners[0].tolist()
        box = (x, y, x + self.data.crop, y + self.data.crop)
        cut = image.convert("RGB").resize((width, height), self.interpolation).crop(box)
        pixels = torch.from_numpy(np.array(cut)).permute(2, 0, 1) / 255
        return (pixels - torch.tensor(self.data.mean)[:, None, None]) / torch.tensor(self.data.std)[:, None, None]
