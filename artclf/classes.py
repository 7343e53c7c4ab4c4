"""Which of a data set's classes a model tells apart, and which pictures those are. Reads only the index."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from artclf.config import DataConfig, MinImages, TopClasses
from artclf.errors import ConfigError, nearest
from artclf.records import ClassInfo, Dataset

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """The pictures of one split that belong to the model's classes.

    Attributes:
        records: (N,) record numbers.
        labels: (N,) places in the model's classes.
    """

    records: Ints
    labels: Ints

    def __len__(self) -> int:
        return len(self.records)


@dataclass(frozen=True)
class ClassChoice:
    """The model's classes, in label order, and the data set's label of each."""

    infos: tuple[ClassInfo, ...]
    labels: Ints

    def split(self, dataset: Dataset, name: str) -> Split:
        """Returns a split's pictures of these classes, labelled by their place here."""
        records = dataset.select(name, self.labels)
        return Split(records, np.searchsorted(self.labels, dataset.index["label"][records]))


def choose_classes(dataset: Dataset, config: DataConfig) -> ClassChoice:
    """Returns the classes that ``data.classes`` asks for, in the data set's order.

    Raises:
        ConfigError: if a name is unknown or fewer than two classes are left.
    """
    counts = np.bincount(dataset.index["label"], minlength=len(dataset.classes))
    wanted = config.classes
    if wanted is None:
        labels = list(range(len(dataset.classes)))
    elif isinstance(wanted, TopClasses):
        if wanted.top > len(dataset.classes):
            raise ConfigError(
                f"data.classes: expected at most the {len(dataset.classes)} classes of the data set, "
                f"received top: {wanted.top}."
            )
        by_size = sorted(range(len(counts)), key=lambda label: (-counts[label], dataset.classes[label].slug))
        labels = by_size[: wanted.top]
    elif isinstance(wanted, MinImages):
        labels = [label for label, count in enumerate(counts) if count >= wanted.min_images]
    else:
        labels = [_label_of(name, dataset.classes) for name in wanted]
    chosen = sorted(set(labels))
    if len(chosen) < 2:
        raise ConfigError(
            f"data.classes: expected a choice of at least 2 classes, received one that leaves {len(chosen)}."
        )
    return ClassChoice(tuple(dataset.classes[label] for label in chosen), np.array(chosen, dtype=np.int64))


def _label_of(name: str, classes: list[ClassInfo]) -> int:
    for label, info in enumerate(classes):
        if name in (info.slug, info.display):
            return label
    raise ConfigError(f"data.classes: the data set has no class {name!r}.{nearest(name, [c.slug for c in classes])}")


def class_weights(labels: Ints, classes: int, kind: str) -> npt.NDArray[np.float32]:
    """Returns (classes,) weights of the loss: all 1, or ``balanced``: total / (classes x count of the class)."""
    if kind == "none":
        return np.ones(classes, dtype=np.float32)
    counts = np.maximum(np.bincount(labels, minlength=classes), 1)
    return (len(labels) / (classes * counts)).astype(np.float32)
