"""Image folders through NVIDIA DALI: decoding on the GPU where there is one, else on the CPU. The only importer of nvidia.dali.

A pipeline has no state that matters: it is fed with bytes and boxes by a function of the batch's number. So it can be built anew at
any position, after a resume or without an image that killed it (one undecodable image ends a DALI pipeline for good).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import torch.utils.dlpack
from nvidia.dali import fn, pipeline_def, types

from senet.data.draws import Ints
from senet.data.loader import Bad, Raw
from senet.data.pixels import size
from senet.data.samples import Samples
from senet.errors import RunError

DEPTH = 2  # batches that a pipeline prepares in advance


class Dali:
    """Batches of `samples` from any number on. `bad` collects what cannot be decoded."""

    def __init__(self, samples: Samples, device: torch.device, workers: int, bad: Bad) -> None:
        self.samples, self.device, self.workers, self.bad = samples, device, workers, bad
        self.readers = ThreadPoolExecutor(workers, thread_name_prefix="reader")
        self.pipe: Any = None
        self.asked = 0  # number of the batch that the pipeline asks for next
        self.pending: deque[tuple[int, Ints]] = deque()  # batches inside the pipeline: their number and images

    @property
    def description(self) -> dict[str, Any]:
        where = "gpu" if self.device.type == "cuda" else "cpu"
        return {"backend": f"dali-{where}", "interpolation": "bilinear", "antialias": True, "orientation": "as stored"}

    def batches(self, first: int, count: int) -> Iterator[Raw]:
        """Batches `first` to `first + count - 1`."""
        delivered = first
        while delivered < first + count:
            if self.pipe is None or not self.pending or self.pending[0][0] != delivered:
                self._build(delivered)
            try:
                (pixels,) = self.pipe.run()
            except RuntimeError as error:
                self._find_bad(error)
                continue
            _, images = self.pending.popleft()
            delivered += 1
            # A copy: the pipeline uses its buffers again.
            tensor = torch.utils.dlpack.from_dlpack(pixels.as_tensor()).clone()
            yield Raw(tensor, torch.from_numpy(self.samples.folder.labels[images]))

    def close(self) -> None:
        self.pipe = None
        self.readers.shutdown(cancel_futures=True)

    def _build(self, first: int) -> None:
        self.asked = first
        self.pending.clear()
        device_id = self.device.index if self.device.type == "cuda" else None
        settings = {"num_threads": self.workers, "device_id": device_id, "prefetch_queue_depth": DEPTH}
        pipeline = _train_pipeline if self.samples.order else _val_pipeline
        self.pipe = pipeline(self._next, self.samples.data.crop, batch_size=self.samples.largest, **settings)
        self.pipe.build()

    def _next(self) -> tuple[list[Any], ...]:
        """What the pipeline is fed with for one batch: file contents, boxes, flips or corners."""
        number = self.asked
        images = self.samples.without(number, self.bad.__contains__)
        read = list(self.readers.map(_read, [self.samples.folder.paths[i] for i in images]))
        for index, (_, _, reason) in zip(images, read, strict=True):
            if reason is not None:
                self.bad.note(self.samples.folder.paths[index], reason)
        good = [reason is None for _, _, reason in read]
        images, read = images[good], [part for part in read if part[2] is None]
        if not read:
            raise RunError(f"not one image of a batch of {len(good)} can be decoded; check the data")
        self.asked += 1
        self.pending.append((number, images))
        contents = [content for content, _, _ in read]
        sizes = np.array([size for _, size, _ in read], np.int64)
        if self.samples.order is None:
            resized, corners = self.samples.centre_cut(sizes)
            return contents, list(resized.astype(np.float32)), list(corners.astype(np.int32))
        cut = self.samples.random_cut(number, images, sizes)
        boxes = cut.boxes.astype(np.int32)
        return contents, list(boxes[:, :2]), list(boxes[:, 2:]), list(cut.flips.astype(np.int32))

    def _find_bad(self, error: RuntimeError) -> None:
        """The pipeline died: try the images inside it one by one, note the bad ones, and give the pipeline up."""
        self.pipe = None
        inside = [self.samples.folder.paths[i] for _, images in self.pending for i in images]
        self.pending.clear()
        before = len(self.bad)
        probe = None
        for path in inside:
            try:
                probe = probe or self._probe()
                probe.feed_input("content", [np.fromfile(path, np.uint8)])
                probe.run()
            except (RuntimeError, OSError, ValueError) as reason:
                self.bad.note(path, _reason(reason))
                probe = None
        if len(self.bad) == before:
            raise error

    def _probe(self) -> Any:
        device_id = self.device.index if self.device.type == "cuda" else None
        alone = {"exec_dynamic": False, "exec_async": False, "exec_pipelined": False}  # it must not ask for more than it is fed
        return _probe_pipeline(batch_size=1, num_threads=1, device_id=device_id, prefetch_queue_depth=1, **alone)


def _read(path: str) -> tuple[Any, tuple[int, int], str | None]:
    """(content, (height, width), why it cannot be used) of an image file."""
    try:
        content = np.fromfile(path, np.uint8)
        return content, size(content.tobytes()), None
    except (OSError, ValueError) as error:
        return None, (0, 0), str(error) or type(error).__name__


def _reason(error: Exception) -> str:
    """What DALI met, without the stack trace around it."""
    text = str(error).partition("encountered:")[2].strip() or str(error).strip() or type(error).__name__
    return f"DALI cannot decode it: {text.splitlines()[0]}"


def _decoder() -> str:
    return "mixed" if _on_gpu() else "cpu"


def _on_gpu() -> bool:
    from nvidia.dali.pipeline import Pipeline

    return Pipeline.current().device_id is not None


@pipeline_def
def _train_pipeline(source: Any, crop: int) -> Any:
    content, corner, shape, flip = fn.external_source(source=source, num_outputs=4, batch=True)
    image = fn.decoders.image_slice(
        content, corner, shape, axes=(0, 1), normalized_anchor=False, normalized_shape=False, device=_decoder(), adjust_orientation=False
    )
    image = fn.resize(image, size=(crop, crop), interp_type=types.INTERP_LINEAR, antialias=True)
    return fn.flip(image, horizontal=flip)


@pipeline_def
def _val_pipeline(source: Any, crop: int) -> Any:
    content, shape, corner = fn.external_source(source=source, num_outputs=3, batch=True)
    image = fn.decoders.image(content, device=_decoder(), adjust_orientation=False)
    image = fn.resize(image, size=shape, interp_type=types.INTERP_LINEAR, antialias=True)
    return fn.slice(image, start=corner, shape=(crop, crop), axes=(0, 1))


@pipeline_def
def _probe_pipeline() -> Any:
    return fn.decoders.image(fn.external_source(name="content"), device=_decoder())
