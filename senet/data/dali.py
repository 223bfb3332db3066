"""Image files through NVIDIA DALI, decoded on the GPU if there is one, otherwise on the CPU.

A pipeline has no state that matters: it is fed with bytes and boxes by a function of the batch's number. So it can be
built anew at any position, after a resume or without an image that killed it (one undecodable image ends a DALI
pipeline for good).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.utils.dlpack
from numpy.typing import NDArray
from nvidia.dali import __version__ as VERSION
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.auto_aug import augmentations
from nvidia.dali.auto_aug.core import augmentation, signed_bin
from nvidia.dali.auto_aug.core._select import select
from torch import Tensor

from senet.data.loader import BadImages, Raw
from senet.data.philox import Ints
from senet.data.pixels import decode, head, uncompressed
from senet.data.policy import BINS, FILL, OPERATIONS, SIGNED, levels, operations
from senet.data.resize import Buffers, Resize, planes
from senet.data.sampler import NUMBER, ValSampler
from senet.data.samples import Samples
from senet.errors import RunError, UsageError

__all__ = ["VERSION", "Dali", "Probe"]
INTERPOLATIONS = {"bilinear": types.INTERP_LINEAR, "bicubic": types.INTERP_CUBIC}
DEPTH = 2  # batches that a pipeline prepares in advance
# A pipeline that is run once must not ask for more than it is fed.
ALONE = {"prefetch_queue_depth": 1, "exec_dynamic": False, "exec_async": False, "exec_pipelined": False}
Decoder = dict[str, Any]  # settings of DALI's decoding operators


class File(NamedTuple):
    content: bytes
    size: tuple[int, int]  # height, width


class Dali:
    """Batches of `samples` from any number on. `bad` collects what cannot be decoded."""

    def __init__(
        self, samples: Samples, device: torch.device, workers: int, bad: BadImages, decode: str, hw_decoder_load: float
    ) -> None:
        """`decode`: auto, gpu or cpu, wherever the batches go. Raises UsageError for a GPU if there is none."""
        if decode == "gpu" and device.type == "cpu":
            raise UsageError("--decode gpu: there is no GPU here; leave it out, or use --decode cpu")
        self.samples, self.device, self.workers, self.bad = samples, device, workers, bad
        self.on_gpu = device.type == "cuda" and decode != "cpu"
        self.decoder: Decoder = {"device": "cpu", "adjust_orientation": False}
        if self.on_gpu:  # with the pixels that the CPU makes: otherwise colours are spread in another way
            more = {"device": "mixed", "jpeg_fancy_upsampling": True, "hw_decoder_load": hw_decoder_load}
            self.decoder |= more
        # On the CPU torch resizes what DALI decodes: in less time, and to PIL's pixels. A policy needs DALI's images.
        cpu = not self.on_gpu and (samples.data.augment.policy is None or not samples.training)
        self.resize = Resize(samples.data.interpolation) if cpu else None
        self.buffers = Buffers(pinned=device.type == "cuda")
        self.readers = ThreadPoolExecutor(workers, thread_name_prefix="reader")
        self.pipe: Any = None
        self.asked = 0  # number of the batch that the pipeline asks for next
        self.pending: deque[tuple[int, Ints, Ints]] = deque()  # batches inside the pipeline: number, keys, sizes [b, 2]
        self.suspects: set[int] = set()  # images that killed a pipeline: tried alone from then on

    @property
    def description(self) -> dict[str, Any]:
        where = "gpu" if self.on_gpu else "cpu"
        resize = "torch" if self.resize else "dali"
        return {"backend": f"dali-{where}", "resize": resize, "antialias": True, "orientation": "as stored"}

    def batches(self, first: int, count: int) -> Iterator[Raw]:
        """Yield batches `first` to `first + count - 1`, but those of a validation that are empty."""
        at = first
        while at < first + count:
            if self.pipe is None or not self.pending or self.pending[0][0] != at:
                self._build(at)
            try:
                (pixels,) = self.pipe.run()
            except StopIteration:  # not one image of the validation can be decoded
                self.pipe = None
                return
            except RuntimeError as error:
                self._find_bad(error)
                continue
            number, keys, sizes = self.pending.popleft()
            while not len(keys):
                number, keys, sizes = self.pending.popleft()
            at = number + 1
            if number >= first + count:  # all that was left is empty
                self.pipe = None
                return
            if self.resize is None:
                tensor = torch.utils.dlpack.from_dlpack(pixels.as_tensor())  # keeps DALI from using the buffer again
            else:
                tensor = self._resized(self.resize, number, keys, sizes, pixels)
            yield Raw(tensor, torch.from_numpy(self.samples.labels(keys)), self.samples.sampler.epoch(number), keys)

    def _resized(self, resize: Resize, number: int, keys: Ints, sizes: Ints, decoded: Any) -> Tensor:
        """Return pixels [b, crop, crop, 3] of decoded images: in training only their boxes were decoded."""
        crop, images = self.samples.crop(number), [torch.utils.dlpack.from_dlpack(image) for image in decoded]
        pixels = self.buffers.take(len(keys), crop, crop, 3)
        targets = pixels.permute(0, 3, 1, 2).split(1)
        if self.samples.training:
            flips = self.samples.random_crop(number, keys, sizes).flips.tolist()

            def make(row: int) -> None:
                resize.crop(planes(images[row]), flips[row], targets[row])
        else:
            shapes, corners = (part.tolist() for part in self.samples.centre_crop(sizes))

            def make(row: int) -> None:
                resize.centre(planes(images[row]), shapes[row], corners[row], targets[row])

        parts = np.array_split(np.arange(len(keys)), self.workers)
        for _ in self.readers.map(lambda rows: list(map(make, rows)), parts):
            pass
        return pixels

    def close(self) -> None:
        self.pipe = None
        self.readers.shutdown(cancel_futures=True)

    def _build(self, first: int) -> None:
        self.asked = first
        self.pending.clear()
        largest = self.samples.sampler.largest
        self.pipe = self._pipeline(self._next, batch_size=largest, num_threads=self.workers, prefetch_queue_depth=DEPTH)
        try:
            self.pipe.build()
        except RuntimeError as error:
            if not self.on_gpu:
                raise
            raise UsageError(
                f"DALI cannot start on {self.device}: {' '.join(str(error).split())[:200]}; update the driver (CUDA 13 "
                "needs 580), or use --decode cpu"
            ) from error

    def _pipeline(self, source: Any, **settings: Any) -> Any:
        settings["device_id"] = self.device.index if self.on_gpu else None
        data, training = self.samples.data, self.samples.training
        settings |= {"decoder": self.decoder}
        if self.resize:
            return (_slice_pipeline if training else _decode_pipeline)(source, **settings)
        settings |= {"interpolation": INTERPOLATIONS[data.interpolation]}
        if not training:
            return _val_pipeline(source, data.crop, **settings)
        policy = data.augment.policy
        if policy is None:
            return _train_pipeline(source, **settings)
        return _policy_pipeline(source, policy.name, operations(policy), **settings)

    def _next(self) -> tuple[list[Any], ...]:
        """Return what the pipeline is fed with for one batch, the next that is not empty."""
        sampler = self.samples.sampler
        for _ in range(len(sampler.batches) + 1 if isinstance(sampler, ValSampler) else 1):
            number, self.asked = self.asked, self.asked + 1
            keys, files = self.samples.fill(number, partial(self._load, number), self.bad)
            sizes = np.array([file.size for file in files], np.int64).reshape(-1, 2)
            self.pending.append((number, keys, sizes))
            if files:
                return self._arguments(number, keys, files, sizes)
        raise StopIteration

    def _arguments(self, number: int, keys: Ints, files: list[File], sizes: Ints) -> tuple[list[Any], ...]:
        """Return the contents of files and, in training, the boxes to decode. If DALI resizes: also the ends of the
        resize, sides and what a policy chose, in validation sizes and corners.
        """
        contents = [np.frombuffer(file.content, np.uint8) for file in files]
        if not self.samples.training:
            if self.resize:
                return (contents,)
            resized, corners = self.samples.centre_crop(sizes)
            return contents, list(resized.astype(np.float32)), list(corners.astype(np.int32))
        taken = self.samples.random_crop(number, keys, sizes)
        boxes = taken.boxes.astype(np.int32)
        if self.resize:
            return contents, list(boxes[:, :2]), list(boxes[:, 2:])
        side = np.full(2, self.samples.crop(number), np.float32)
        # A resize from the right end to the left one flips at no cost.
        low, high = np.zeros((len(files), 2), np.float32), taken.boxes[:, 2:].astype(np.float32)
        low[:, 1], high[:, 1] = np.where(taken.flips, high[:, 1], 0), np.where(taken.flips, 0, high[:, 1])
        fed = contents, list(boxes[:, :2]), list(boxes[:, 2:]), list(low), list(high), [side] * len(files)
        choice = self.samples.choose(number, keys)
        return fed if choice is None else (*fed, list(choice.operations), list(choice.bins), list(choice.signs))

    def _load(self, number: int, keys: Ints) -> list[File | None]:
        files: list[File | None] = []
        for key, (file, reason) in zip(keys, self._read_all(keys), strict=True):
            if file and int(key) & NUMBER in self.suspects:
                reason = self._try(number, [(key, file)])
            if reason:
                self.bad.note(self.samples.path(key), reason)
            files.append(None if reason else file)
        return files

    def _read_all(self, keys: Ints) -> Iterator[tuple[File | None, str]]:
        parts = self.readers.map(lambda part: [self._read(key) for key in part], np.array_split(keys, self.workers))
        return chain.from_iterable(parts)

    def _read(self, key: int) -> tuple[File | None, str]:
        """Return an image file, or why it cannot be used. Raises RunError if it cannot be read."""
        try:
            content = self.samples.read(key)
            height, width, alike = head(content)
            return File(content if alike else uncompressed(decode(content)), (height, width)), ""
        except (OSError, ValueError, SyntaxError) as error:
            return None, str(error) or type(error).__name__

    def _find_bad(self, error: RuntimeError) -> None:
        """Give up the pipeline, which died, and find the images inside it that it died of. Raises RunError if it died
        of none of them.
        """
        self.pipe = None
        before = len(self.suspects)
        for number, keys, _ in self.pending:
            read = [(key, file) for key, (file, _) in zip(keys, self._read_all(keys), strict=True) if file]
            self.suspects.update(int(key) & NUMBER for key in self._undecodable(number, read))
        self.pending.clear()
        if len(self.suspects) == before:
            raise RunError(f"DALI failed, though on no single image: {_reason(error)}; try --backend pillow") from error

    def _undecodable(self, number: int, read: list[tuple[int, File]]) -> list[int]:
        """Return the keys of those images that cannot be decoded, by halves: mostly it is one of hundreds."""
        if not read or not self._try(number, read):
            return []
        if len(read) == 1:
            return [read[0][0]]
        half = len(read) // 2
        return self._undecodable(number, read[:half]) + self._undecodable(number, read[half:])

    def _try(self, number: int, read: list[tuple[int, File]]) -> str:
        """Return why images, cropped as in batch `number`, cannot be decoded; nothing if all can.

        Only part of an image is decoded for training. That part decides, not what was found in an earlier epoch: a run
        that resumes knows of no earlier epoch.
        """
        keys, files = zip(*read, strict=True)
        arguments = self._arguments(number, np.array(keys), list(files), np.array([file.size for file in files]))
        threads = min(self.workers, len(files))
        try:
            self._pipeline(lambda: arguments, batch_size=len(files), num_threads=threads, **ALONE).run()
        except RuntimeError as error:
            return _reason(error)
        return ""


class Probe:
    """DALI's CPU decoder for whole images: a pipeline that is built anew after each image that kills it."""

    LARGEST = 64  # images at a time

    def __init__(self) -> None:
        self.pipe: Any = None

    def decode(self, contents: Sequence[bytes]) -> list[NDArray[np.uint8] | None]:
        """Decode at most LARGEST image files to pixels [height, width, 3]; None for those that DALI cannot decode. It
        does not say why.
        """
        whole = self._run(contents)
        return whole or [next(iter(self._run([content])), None) for content in contents]

    def _run(self, contents: Sequence[bytes]) -> list[NDArray[np.uint8] | None]:
        if self.pipe is None:
            self.pipe = _whole_pipeline(batch_size=self.LARGEST, num_threads=1, device_id=None, **ALONE)
        try:
            self.pipe.feed_input("content", [np.frombuffer(content, np.uint8) for content in contents])
            (images,) = self.pipe.run()
            return [np.asarray(images.at(number)) for number in range(len(contents))]
        except RuntimeError:
            self.pipe = None
            return []


@pipeline_def
def _whole_pipeline() -> Any:
    return fn.decoders.image(fn.external_source(name="content"), device="cpu", adjust_orientation=False)


def _reason(error: Exception) -> str:
    """Return what DALI met, without the stack trace around it."""
    text = str(error).partition("encountered:")[2].strip() or str(error).strip() or type(error).__name__
    return f"DALI cannot decode it: {text.splitlines()[0].removeprefix('Failed to decode sample #0 : ')}"


@pipeline_def
def _decode_pipeline(source: Any, decoder: Decoder) -> Any:
    (content,) = fn.external_source(source=source, num_outputs=1, batch=True)
    return fn.decoders.image(content, **decoder)


@pipeline_def
def _slice_pipeline(source: Any, decoder: Decoder) -> Any:
    return _slice(decoder, *fn.external_source(source=source, num_outputs=3, batch=True))


@pipeline_def
def _train_pipeline(source: Any, decoder: Decoder, interpolation: Any) -> Any:
    fed = fn.external_source(source=source, num_outputs=6, batch=True)
    return _train_image(decoder, interpolation, *fed)


@pipeline_def(enable_conditionals=True)
def _policy_pipeline(source: Any, policy: str, count: int, decoder: Decoder, interpolation: Any) -> Any:
    *fed, chosen, bins, signs = fn.external_source(source=source, num_outputs=9, batch=True)
    image = _train_image(decoder, interpolation, *fed)
    known, side = _operations(policy), fed[-1]
    strengths = signed_bin(bins, random_sign=signs)
    for turn in range(count):
        settings = {"magnitude_bin": strengths[turn], "num_magnitude_bins": BINS[policy], "shape": side}
        image = select(known, chosen[turn], image, fill_value=FILL, interp_type=types.INTERP_LINEAR, **settings)
    return image


# DALI's library still calls these two operators by names that are deprecated, and says so at length.
@augmentation
def _equalize(data: Any, _: Any) -> Any:
    return fn.equalize(data)


@augmentation(mag_to_param=augmentations.sharpness_kernel, param_device="auto")
def _sharpness(data: Any, kernel: Any) -> Any:
    return fn.filter(data, kernel)


RENAMED = {"equalize": _equalize, "sharpness": _sharpness}


def _operations(policy: str) -> list[Any]:
    """Return DALI's operations in the order of OPERATIONS, with the strengths that both backends share."""
    strengths, known = levels(policy), []
    for name in OPERATIONS:
        operation = RENAMED.get(name) or getattr(augmentations, name)
        if name in strengths:
            operation = operation.augmentation(mag_range=strengths[name], randomly_negate=name in SIGNED)
        known.append(operation)
    return known


def _train_image(
    decoder: Decoder, interpolation: Any, content: Any, corner: Any, shape: Any, low: Any, high: Any, side: Any
) -> Any:
    image = _slice(decoder, content, corner, shape)
    return fn.resize(image, size=side, roi_start=low, roi_end=high, interp_type=interpolation, antialias=True)


def _slice(decoder: Decoder, content: Any, corner: Any, shape: Any) -> Any:
    pixels: dict[str, Any] = {"axes": (0, 1), "normalized_anchor": False, "normalized_shape": False}
    return fn.decoders.image_slice(content, corner, shape, **pixels, **decoder)


@pipeline_def
def _val_pipeline(source: Any, crop: int, decoder: Decoder, interpolation: Any) -> Any:
    content, shape, corner = fn.external_source(source=source, num_outputs=3, batch=True)
    image = fn.decoders.image(content, **decoder)
    image = fn.resize(image, size=shape, interp_type=interpolation, antialias=True)
    return fn.slice(image, start=corner, shape=(crop, crop), axes=(0, 1))
