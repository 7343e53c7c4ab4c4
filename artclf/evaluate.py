"""Labels and probabilities in, scores out: one definition for the trainer, the command and the report.

Owns the form of evaluation/<split>.json and predictions_<split>.csv. Imports numpy only; loading a
model to score is left to the command part. A picture's prediction is its most probable class, the
one that stands first in the list of classes where several are equally probable; the top five follow
the same order, so top-5 never misses what top-1 hits.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from artclf.command_line import run_command
from artclf.errors import ConfigError, DivergedError
from artclf.tables import plain, write_csv

if TYPE_CHECKING:
    from artclf.predict import Classifier

Labels = npt.NDArray[np.integer[Any]]
Probabilities = npt.NDArray[np.floating[Any]]

LOSS_FLOOR = 1e-7
"""A true class's probability counts as at least this much in the loss; Keras' losses clip there too
(keras.config.epsilon)."""
TOP = 5


@dataclass(frozen=True)
class ClassScore:
    """How well one class is told from the others; ``support`` is its number of pictures."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Evaluation:
    """The scores of one model on one split.

    Attributes:
        count: pictures scored, every one of the split.
        loss: mean negative natural logarithm of the true class's probability.
        per_class: in label order.
        confusion: (C, C) counts, a row a true class, a column a predicted one.
    """

    count: int
    accuracy: float
    top5_accuracy: float
    macro_f1: float
    weighted_f1: float
    loss: float
    per_class: tuple[ClassScore, ...]
    confusion: tuple[tuple[int, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of evaluation/<split>.json."""
        per_class = [{"class": name, **rest} for name, rest in map(_split_name, self.per_class)]
        return {**asdict(self), "per_class": per_class, "confusion": [list(row) for row in self.confusion]}

    @classmethod
    def from_dict(cls, content: Any) -> Evaluation:
        """Returns the scores that ``to_dict`` wrote.

        Raises:
            ValueError: saying what is missing or of the wrong kind.
        """
        try:
            per_class = tuple(
                ClassScore(
                    str(row["class"]),
                    float(row["precision"]),
                    float(row["recall"]),
                    float(row["f1"]),
                    int(row["support"]),
                )
                for row in content["per_class"]
            )
            confusion = tuple(tuple(map(int, row)) for row in content["confusion"])
            rates = {name: float(content[name]) for name in _RATES}
            count = int(content["count"])
        except KeyError as error:
            raise ValueError(f"no {error.args[0]}") from error
        except (TypeError, AttributeError) as error:
            raise ValueError(f"not in the form of an evaluation ({error})") from error
        if any(len(row) != len(per_class) for row in confusion) or len(confusion) != len(per_class):
            raise ValueError(f"a confusion matrix that does not fit {len(per_class)} classes")
        return cls(count=count, per_class=per_class, confusion=confusion, **rates)


_RATES = ("accuracy", "top5_accuracy", "macro_f1", "weighted_f1", "loss")


def score(labels: Labels, probabilities: Probabilities, classes: Sequence[str]) -> Evaluation:
    """Returns the scores of predictions, equal to scikit-learn's with ``labels=range(C), zero_division=0``.

    Precision, recall and F1 of a class are 0 where their denominator is 0. The macro mean goes over
    all C classes, so one without pictures in this split counts as 0, also if nobody predicts it; the
    weighted mean weighs by support. With five classes or fewer the top five are all of them.

    Args:
        labels: (N,) whole numbers, each a place in ``classes``.
        probabilities: (N, C), a row a picture.
        classes: C slugs in label order.

    Raises:
        ConfigError: if there is no picture, or the shapes do not fit each other.
        DivergedError: if a probability is not a finite number.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    _check(labels, probabilities, classes)
    confusion = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(confusion, (labels, np.argmax(probabilities, axis=1)), 1)
    hits, support, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    precision, recall = _ratio(hits, predicted), _ratio(hits, support)
    f1 = _ratio(2 * hits, support + predicted)
    of_truth = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return Evaluation(
        count=len(labels),
        accuracy=float(hits.sum() / len(labels)),
        top5_accuracy=float(np.mean(_rank_of_truth(labels, probabilities) < TOP)),
        macro_f1=float(f1.mean()),
        weighted_f1=float((f1 * support).sum() / len(labels)),
        loss=float(-np.log(np.maximum(of_truth, LOSS_FLOOR)).mean()),
        per_class=tuple(
            ClassScore(name, float(precision[i]), float(recall[i]), float(f1[i]), int(support[i]))
            for i, name in enumerate(classes)
        ),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
    )


@dataclass(frozen=True)
class Prediction:
    """One row of predictions_<split>.csv: class and predicted are slugs, ``probability`` is that of ``predicted``
    and ``probability_of_class`` that of the truth."""

    record: int
    name: str
    class_: str
    predicted: str
    probability: float
    probability_of_class: float


def write_predictions(
    path: Path,
    records: Labels,
    names: Sequence[str],
    labels: Labels,
    probabilities: Probabilities,
    classes: Sequence[str],
) -> None:
    """Writes a row a picture: record, name, class, predicted, probability and p_<slug> of every class.

    Args:
        path: evaluation/predictions_<split>.csv.
        records: (N,) record numbers in the data set.
        names: N source names.
        labels: (N,) places in ``classes``.
        probabilities: (N, C), written to six decimals.
        classes: C slugs in label order.
    """
    predicted = np.argmax(probabilities, axis=1)

    def row(i: int) -> list[Any]:
        rounded = [f"{value:.6f}" for value in probabilities[i]]
        best = int(predicted[i])
        return [int(records[i]), names[i], classes[int(labels[i])], classes[best], rounded[best], *rounded]

    header = ["record", "name", "class", "predicted", "probability", *(f"p_{name}" for name in classes)]
    write_csv(path, header, map(row, range(len(labels))))


def read_predictions(path: Path) -> Iterator[Prediction]:
    """Yields the rows that ``write_predictions`` wrote.

    Raises:
        OSError: if the file cannot be opened.
        ValueError: at the first row that is not in the form.
    """
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        for row in csv.DictReader(file, strict=True):
            try:
                truth = plain(row["class"])
                yield Prediction(
                    int(row["record"]),
                    plain(row["name"]),
                    truth,
                    plain(row["predicted"]),
                    float(row["probability"]),
                    float(row[f"p_{truth}"]),
                )
            except (KeyError, TypeError) as error:
                raise ValueError(f"{path}: a row is not in the form of predictions ({error}).") from error


def _split_name(scores: ClassScore) -> tuple[str, dict[str, Any]]:
    rest = asdict(scores)
    return rest.pop("name"), rest


def _ratio(part: npt.NDArray[np.int64], whole: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)


def _rank_of_truth(labels: Labels, probabilities: Probabilities) -> npt.NDArray[np.int64]:
    """Returns (N,) how many classes stand before the true one, ties in label order."""
    of_truth = probabilities[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(probabilities.shape[1])[None, :] < labels[:, None]
    before = (probabilities > of_truth) | ((probabilities == of_truth) & earlier)
    return np.asarray(before.sum(axis=1), dtype=np.int64)


def _check(labels: Labels, probabilities: Probabilities, classes: Sequence[str]) -> None:
    if len(labels) == 0:
        raise ConfigError("evaluation: expected at least one picture in the split, received none.")
    if labels.ndim != 1 or probabilities.shape != (len(labels), len(classes)):
        raise ConfigError(
            f"evaluation: expected probabilities of shape ({len(labels)}, {len(classes)}), a row a picture and "
            f"a column a class, received {probabilities.shape}."
        )
    if labels.min() < 0 or labels.max() >= len(classes):
        raise ConfigError(
            f"evaluation: expected labels from 0 to {len(classes) - 1}, received {labels.min()} to {labels.max()}."
        )
    unsound = int((~np.isfinite(probabilities)).any(axis=1).sum())
    if unsound:
        raise DivergedError(
            f"evaluation: {unsound} of {len(labels)} pictures have a probability that is not a finite number; "
            "the model has diverged. Train it with a lower learning rate."
        )


# -- the command: ``python -m artclf.evaluate MODEL --data D`` ------------------------------------


def main(argv: list[str]) -> int:
    """Scores a model on a split of a prepared data set, or on all pictures of a plain folder or zip."""
    arguments = _parser().parse_args(argv)
    from artclf.predict import load_classifier
    from artclf.records import is_dataset
    from artclf.rundir import write_json
    from artclf.storage import local_path

    classifier = load_classifier(arguments.model)
    slugs = [info.slug for info in classifier.classes]
    prepared = is_dataset(local_path(arguments.data))
    if arguments.split and not prepared:
        raise ConfigError(
            f"--split {arguments.split}: {arguments.data} is not a prepared data set; all of it is scored."
        )
    split = (arguments.split or "test") if prepared else "pictures"
    found = _from_split(arguments.data, split, classifier) if prepared else _from_pictures(arguments.data, classifier)
    records, labels, probabilities, names, left_out = found
    if not len(labels):
        known = ", ".join(slugs[:5]) + (", …" if len(slugs) > 5 else "")
        reasons = "; ".join(f"{count:,}: {reason}" for reason, count in left_out.items()) or "it holds none"
        raise ConfigError(
            f"{arguments.data}: no picture of a class that the model knows ({known}). Left out {reasons}."
        )
    scores = score(labels, probabilities, slugs)
    if arguments.out:
        write_json(arguments.out / f"{split}.json", scores.to_dict())
        write_predictions(arguments.out / f"predictions_{split}.csv", records, names, labels, probabilities, slugs)
    if arguments.json:
        print(json.dumps({**scores.to_dict(), "left_out": left_out}, indent=2, ensure_ascii=False))
    else:
        print(f"{'split ' + split if prepared else 'all pictures'} of {arguments.data}")
        _show(scores, left_out, {info.slug: info.display for info in classifier.classes})
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m artclf.evaluate", description="Score a trained model.")
    parser.add_argument("model", metavar="MODEL", help="a run directory, studies/NAME/best, or a .keras file")
    parser.add_argument(
        "--data", required=True, metavar="D", help="a prepared data set, or a folder or zip of pictures"
    )
    parser.add_argument("--split", choices=("train", "val", "test"), help="of a prepared set (default: test)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="also write the scores and predictions there")
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")
    return parser


Found = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64], list[str], dict[str, int]]
"""(N,) record numbers (0..N-1 of a plain source), (N,) labels, (N, C) probabilities, N names, and how many
pictures were left out for which reason."""


def _from_split(data: str, split: str, classifier: Classifier) -> Found:
    """Scores the pictures of one split whose class, by slug, is one of the model's."""
    from artclf.images import read_picture
    from artclf.records import Dataset
    from artclf.storage import local_path

    dataset = Dataset.open(local_path(data))
    places = {info.slug: place for place, info in enumerate(classifier.classes)}
    of_label = np.array([places.get(info.slug, -1) for info in dataset.classes])
    records = dataset.select(split)
    labels = of_label[dataset.index["label"][records]]
    known = records[labels >= 0]
    left_out = {"its class is not one of the model's": int((labels < 0).sum())} if (labels < 0).any() else {}
    pictures = (read_picture(dataset.read(record)).pixels for record in known.tolist())
    probabilities = list(classifier.probabilities(pictures))
    names = dataset.names(known)
    return known, labels[labels >= 0], _stacked(probabilities, classifier), names, left_out


def _from_pictures(source: str, classifier: Classifier) -> Found:
    """Scores every readable picture of a plain source, labelled as prepare would label it."""
    from artclf.images import Unreadable, read_picture
    from artclf.labelled import labelled_pictures
    from artclf.names import fold

    places = {fold(name): place for place, info in enumerate(classifier.classes) for name in (info.slug, info.display)}
    labels: list[int] = []
    names: list[str] = []
    left_out: Counter[str] = Counter()

    def pictures() -> Iterator[npt.NDArray[np.uint8]]:
        for name, class_name, content in labelled_pictures(source):
            place = None if class_name is None else places.get(fold(class_name))
            if place is None:
                left_out["its class is not one of the model's"] += 1
                continue
            try:
                pixels = read_picture(content).pixels
            except Unreadable as error:
                left_out[error.reason] += 1
                continue
            labels.append(place)
            names.append(name)
            yield pixels

    probabilities = list(classifier.probabilities(pictures()))
    numbers = np.arange(len(labels))
    return numbers, np.array(labels, dtype=np.int64), _stacked(probabilities, classifier), names, dict(left_out)


def _stacked(probabilities: list[npt.NDArray[np.float64]], classifier: Classifier) -> npt.NDArray[np.float64]:
    return np.stack(probabilities) if probabilities else np.zeros((0, len(classifier.classes)))


def _show(scores: Evaluation, left_out: dict[str, int], displays: dict[str, str]) -> None:
    from artclf.errors import printable

    print(
        f"{scores.count:,} pictures  accuracy {scores.accuracy:.4f}  top5 {scores.top5_accuracy:.4f}  "
        f"macro F1 {scores.macro_f1:.4f}  loss {scores.loss:.4f}"
    )
    for reason, count in sorted(left_out.items()):
        print(f"left out {count:,}: {reason}")
    print(f"{'class, worst first':<40} {'precision':>9} {'recall':>7} {'F1':>7} {'pictures':>9}")
    for row in sorted(scores.per_class, key=lambda row: row.f1):
        name = printable(displays[row.name])[:40]
        print(f"{name:<40} {row.precision:9.3f} {row.recall:7.3f} {row.f1:7.3f} {row.support:9,}")


if __name__ == "__main__":
    run_command(main)
