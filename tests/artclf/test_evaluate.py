"""artclf.evaluate: every score equals scikit-learn's, and nothing unsound is scored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from artclf.errors import ConfigError, DivergedError
from artclf.evaluate import Evaluation, Labels, Probabilities, read_predictions, score, write_predictions


def case(seed: int, count: int, classes: int, present: int) -> tuple[Labels, Probabilities, list[str]]:
    """Returns random labels among the first ``present`` classes and float32 probabilities that favour the truth."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, present, count)
    scores = random.normal(size=(count, classes))
    scores[np.arange(count), labels] += random.uniform(0, 3)
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    return labels, probabilities.astype(np.float32), [f"c{i}" for i in range(classes)]


@st.composite
def cases(draw: st.DrawFn, least_classes: int = 2) -> tuple[Labels, Probabilities, list[str]]:
    classes = draw(st.integers(least_classes, 12))
    return case(draw(st.integers(0, 2**32 - 1)), draw(st.integers(1, 60)), classes, draw(st.integers(1, classes)))


@given(cases())
def test_accuracy_confusion_and_f1_means_equal_scikit_learn(case: tuple[Labels, Probabilities, list[str]]) -> None:
    labels, probabilities, classes = case
    predicted, every = probabilities.argmax(axis=1), range(len(classes))
    ours = score(labels, probabilities, classes)
    assert ours.accuracy == pytest.approx(metrics.accuracy_score(labels, predicted))
    assert np.array_equal(ours.confusion, metrics.confusion_matrix(labels, predicted, labels=list(every)))
    for average, value in (("macro", ours.macro_f1), ("weighted", ours.weighted_f1)):
        reference = metrics.f1_score(labels, predicted, labels=list(every), average=average, zero_division=0)
        assert value == pytest.approx(reference)


@given(cases())
def test_precision_recall_f1_and_support_of_each_class_equal_scikit_learn(
    case: tuple[Labels, Probabilities, list[str]],
) -> None:
    labels, probabilities, classes = case
    reference = metrics.precision_recall_fscore_support(
        labels, probabilities.argmax(axis=1), labels=list(range(len(classes))), zero_division=0
    )
    ours = [(c.precision, c.recall, c.f1, c.support) for c in score(labels, probabilities, classes).per_class]
    assert np.allclose(ours, np.transpose(reference))


@given(cases(least_classes=6))
def test_top5_equals_scikit_learn(case: tuple[Labels, Probabilities, list[str]]) -> None:
    labels, probabilities, classes = case
    reference = metrics.top_k_accuracy_score(labels, probabilities, k=5, labels=range(len(classes)))
    assert score(labels, probabilities, classes).top5_accuracy == pytest.approx(reference)


@given(cases())
def test_loss_equals_scikit_learn(case: tuple[Labels, Probabilities, list[str]]) -> None:
    labels, probabilities, classes = case
    exact = probabilities.astype(np.float64)
    exact /= exact.sum(axis=1, keepdims=True)
    reference = metrics.log_loss(labels, exact, labels=range(len(classes)))
    assert score(labels, exact, classes).loss == pytest.approx(reference)


@given(cases())
def test_the_order_of_the_pictures_does_not_matter(case: tuple[Labels, Probabilities, list[str]]) -> None:
    labels, probabilities, classes = case
    forwards, backwards = score(labels, probabilities, classes), score(labels[::-1], probabilities[::-1], classes)
    assert forwards.confusion == backwards.confusion
    assert forwards.top5_accuracy == backwards.top5_accuracy
    assert forwards.loss == pytest.approx(backwards.loss)


def test_an_impossible_truth_costs_no_more_than_the_floor() -> None:
    assert score(np.array([0]), np.array([[0.0, 1.0]]), ["a", "b"]).loss == pytest.approx(-np.log(1e-7))


def test_with_fewer_than_five_classes_the_top_five_hold_everything() -> None:
    assert score(np.array([3]), np.array([[0.7, 0.2, 0.1, 0.0]]), ["a", "b", "c", "d"]).top5_accuracy == 1


def test_equal_probabilities_rank_in_label_order() -> None:
    level = np.full((7, 7), 1 / 7)
    scores = score(np.arange(7), level, list("abcdefg"))
    assert scores.accuracy == pytest.approx(1 / 7)
    assert scores.top5_accuracy == pytest.approx(5 / 7)


def test_a_class_without_pictures_counts_as_zero_in_the_macro_mean() -> None:
    scores = score(np.array([0, 1]), np.eye(3)[:2], ["a", "b", "absent"])
    assert scores.macro_f1 == pytest.approx(2 / 3)
    assert scores.weighted_f1 == 1


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one picture"):
        score(np.zeros(0, dtype=np.int64), np.zeros((0, 2)), ["a", "b"])


@pytest.mark.parametrize("unsound", [np.nan, np.inf])
def test_a_probability_that_is_not_finite_means_that_the_model_diverged(unsound: float) -> None:
    with pytest.raises(DivergedError, match="1 of 2 pictures"):
        score(np.array([0, 1]), np.array([[0.5, 0.5], [unsound, 0.5]]), ["a", "b"])


@pytest.mark.parametrize(
    ("labels", "shape", "message"), [([0, 1], (2, 3), r"shape \(2, 2\)"), ([0, 2], (2, 2), "0 to 1")]
)
def test_labels_and_probabilities_that_do_not_fit_are_refused(
    labels: list[int], shape: tuple[int, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        score(np.array(labels), np.full(shape, 0.5), ["a", "b"])


def test_the_json_form_has_the_agreed_names_and_reads_back() -> None:
    scores = score(*case(seed=1, count=30, classes=4, present=4))
    content = json.loads(json.dumps(scores.to_dict()))
    names = "count accuracy top5_accuracy macro_f1 weighted_f1 loss per_class confusion"
    assert set(content) == set(names.split())
    assert list(content["per_class"][0]) == ["class", "precision", "recall", "f1", "support"]
    assert Evaluation.from_dict(content) == scores


@pytest.mark.parametrize("damage", [{"confusion": [[1]]}, {"loss": None}, {"per_class": [{}]}, {"count": "many"}])
def test_a_damaged_json_form_is_refused(damage: dict[str, object]) -> None:
    scores = score(*case(seed=1, count=30, classes=4, present=4))
    with pytest.raises(ValueError):
        Evaluation.from_dict({**scores.to_dict(), **damage})


def test_predictions_keep_odd_names_and_read_back(tmp_path: Path) -> None:
    names, classes = ["=SUM(A1)", 'a "b",\nc', "d\udce9.jpg"], ["-x", "Dürer,_Albrecht"]
    labels, probabilities = np.array([0, 1, 1]), np.array([[0.9, 0.1], [0.6, 0.4], [0.25, 0.75]])
    write_predictions(tmp_path / "p.csv", np.array([4, 7, 9]), names, labels, probabilities, classes)
    rows = list(read_predictions(tmp_path / "p.csv"))
    assert [row.name for row in rows] == names
    assert [(row.record, row.class_, row.predicted) for row in rows] == [
        (4, "-x", "-x"),
        (7, "Dürer,_Albrecht", "-x"),
        (9, "Dürer,_Albrecht", "Dürer,_Albrecht"),
    ]
    assert [(row.probability, row.probability_of_class) for row in rows] == [(0.9, 0.9), (0.6, 0.4), (0.75, 0.75)]
