"""From a data set and settings to batches: which pictures, in which order, seen how.

The order of an epoch and every random choice in it are pure functions of (seed, epoch, place in
the epoch), so a run that starts again at any step sees exactly what it would have seen. Pictures
are read and decoded by threads of this process, a batch at a time, straight into the uint8 array
that the model is given; never more than a few batches are in memory.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from artclf.classes import Ints, Split
from artclf.config import DataConfig
from artclf.images import read_picture
from artclf.records import Dataset

Pixels = npt.NDArray[np.uint8]

_EVALUATION = 2**32  # in place of an epoch's number: the fixed places of the crops that are evaluated


@dataclass(frozen=True)
class Batch:
    """Pictures as the model sees them.

    Attributes:
        images: (B, S, S, 3) uint8 RGB.
        labels: (B,) places in the model's classes.
        records: (B,) record numbers in the data set.
    """

    images: Pixels
    labels: Ints
    records: Ints


# -- the order of an epoch -----------------------------------------------------------------------


def epoch_order(labels: Ints, config: DataConfig, seed: int, epoch: int) -> Ints:
    """Returns which picture of the split (0..N-1) stands at each place of an epoch, a pure function
    of the arguments. Each picture comes ``crops`` times; under the balanced sampler each class
    comes equally often instead, its pictures in turn.

    Args:
        labels: (N,) the split's labels.
        config: the sampler and the crops per picture.
        seed: the run's seed.
        epoch: the epoch's number.

    Returns:
        (N x crops,) places in the split.
    """
    random = np.random.default_rng((seed, epoch))
    items = np.arange(len(labels)) if config.sampler == "natural" else _balanced(labels, random)
    return random.permutation(np.tile(items, config.crops))


def _balanced(labels: Ints, random: np.random.Generator) -> Ints:
    classes = np.unique(labels)
    share = -(-len(labels) // len(classes))
    drawn = [np.resize(random.permutation(np.flatnonzero(labels == c)), share) for c in classes]
    return random.permutation(np.concatenate(drawn))[: len(labels)]


# -- how a picture is seen -----------------------------------------------------------------------


def view(pixels: Pixels, config: DataConfig, random: np.random.Generator | None) -> Pixels:
    """Returns a picture as the model's input.

    ``resize`` squeezes the whole picture, ``pad`` keeps its proportions between black bars, ``crop``
    takes a square of the picture's own pixels (one smaller than the square is enlarged first).

    Args:
        pixels: (H, W, 3) uint8.
        config: view and size.
        random: decides a crop's place; without it the crop is the middle.

    Returns:
        (S, S, 3) uint8.
    """
    size = config.image_size
    height, width = pixels.shape[:2]
    if config.view == "resize":
        return _resized(pixels, size, size)
    if config.view == "pad":
        scale = size / max(height, width)
        inner = _resized(pixels, max(1, round(height * scale)), max(1, round(width * scale)))
        padded = np.zeros((size, size, 3), dtype=np.uint8)
        top, left = (size - inner.shape[0]) // 2, (size - inner.shape[1]) // 2
        padded[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
        return padded
    if min(height, width) < size:
        scale = size / min(height, width)
        pixels = _resized(pixels, max(size, round(height * scale)), max(size, round(width * scale)))
        height, width = pixels.shape[:2]
    room = height - size, width - size
    top, left = (random.integers(0, room, endpoint=True)) if random else (room[0] // 2, room[1] // 2)
    return pixels[top : top + size, left : left + size]


def _resized(pixels: Pixels, height: int, width: int) -> Pixels:
    if pixels.shape[:2] == (height, width):
        return pixels
    # Pillow's bilinear filter averages over all source pixels when it shrinks, so fine strokes do not alias.
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))


def evaluation_views(pixels: Pixels, config: DataConfig) -> Pixels:
    """Returns the views of a picture whose probabilities are averaged: always the same ones.

    Returns:
        (crops, S, S, 3) uint8. A single crop is the middle one; several lie at fixed random places.
    """
    if config.crops == 1 or config.view != "crop":
        return np.stack([view(pixels, config, None)])
    return np.stack([view(pixels, config, np.random.default_rng((_EVALUATION, n))) for n in range(config.crops)])


# -- batches -------------------------------------------------------------------------------------


class Batches:
    """Batches of a split, decoded ahead by threads.

    Args:
        dataset: where the pictures lie.
        split: which of them.
        config: how they are seen.
        batch_size: pictures a batch; the last batch of an epoch may be smaller, none is dropped.
        threads: how many decode; the result does not depend on it.
    """

    def __init__(
        self, dataset: Dataset, split: Split, config: DataConfig, batch_size: int, threads: int | None = None
    ) -> None:
        self._dataset = dataset
        self._split = split
        self._config = config
        self._batch_size = batch_size
        self._threads = threads or min(8, os.cpu_count() or 1)

    def steps(self) -> int:
        """Returns the batches of a training epoch."""
        return -(-len(self._split) * self._config.crops // self._batch_size)

    def epoch(self, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yields the batches of a training epoch from step ``start`` on."""
        order = epoch_order(self._split.labels, self._config, seed, epoch)

        def build(step: int) -> Batch:
            places = np.arange(step * self._batch_size, min((step + 1) * self._batch_size, len(order)))
            size = self._config.image_size
            images = np.empty((len(places), size, size, 3), dtype=np.uint8)
            for row, place in enumerate(places.tolist()):
                random = np.random.default_rng((seed, epoch, place))
                seen = view(self._pixels(int(order[place])), self._config, random)
                flipped = self._config.augment.flip and random.random() < 0.5
                images[row] = seen[:, ::-1] if flipped else seen
            items = order[places]
            return Batch(images, self._split.labels[items], self._split.records[items])

        return self._ahead(build, range(start, self.steps()))

    def evaluation(self) -> Iterator[Batch]:
        """Yields every picture of the split once, in order; with several crops a picture's views
        stand one after the other, so a batch then holds fewer pictures, each several times."""
        views = self._config.crops if self._config.view == "crop" else 1
        pictures = max(1, self._batch_size // views)

        def build(start: int) -> Batch:
            items = np.arange(start, min(start + pictures, len(self._split)))
            images = np.concatenate([evaluation_views(self._pixels(item), self._config) for item in items.tolist()])
            return Batch(images, self._split.labels[items], self._split.records[items])

        return self._ahead(build, range(0, len(self._split), pictures))

    def _pixels(self, item: int) -> Pixels:
        picture = read_picture(self._dataset.read(int(self._split.records[item])))
        return picture.pixels

    def _ahead(self, build: Callable[[int], Batch], starts: range) -> Iterator[Batch]:
        """Yields build(start) for each start in order, with a few being built by threads meanwhile."""
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="decode")
        pending: deque[Future[Batch]] = deque()
        try:
            for start in starts:
                pending.append(pool.submit(build, start))
                if len(pending) > self._threads + 1:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
