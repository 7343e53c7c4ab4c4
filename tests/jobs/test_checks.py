"""jobs.checks: what looks wrong is flagged, and what is well is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from artclf.evaluate import score
from jobs.checks import Finding, check
from jobs.gather import RunResult, gather, read_study
from jobs.grid import Objective
from tests.studies import Fake, grid_of_fakes, make_dataset, make_study

# FEATURES.md, table 2: size, crops, model, view, dropout, L2, then train, val and test accuracy / top-5.
TABLE_2: list[tuple[Any, ...]] = [
    (64, 16, "mobilenet", "crop", 0.7, None, (0.7563, 0.9563), (0.2416, 0.5579), (0.2614, 0.5738)),
    (64, 16, "mobilenet", "crop", 0.7, 0.001, (0.7563, 0.9563), (0.2416, 0.5579), (0.2416, 0.5579)),
    (64, 16, "mobilenet", "crop", 0.9, 0.0001, (0.7429, 0.9394), (0.2459, 0.5457), (0.2459, 0.5457)),
    (64, 16, "resnet50", "crop", 0.9, 0.0001, (0.8548, 0.9723), (0.3157, 0.6402), (0.3157, 0.6402)),
    (128, 4, "mobilenet", "crop", 0.7, 0.0001, (0.8915, 0.9896), (0.2264, 0.5297), (0.2264, 0.5297)),
    (128, 4, "resnet50", "crop", 0.7, 0.0001, None, None, None),
    (256, 1, "mobilenet", "crop", 0.7, 0.0001, None, None, None),
    (256, 1, "mobilenet", "resize", 0.7, 0.0001, (0.9768, 0.9997), (0.3598, 0.6521), (0.3598, 0.6521)),
    (256, 1, "resnet50", "crop", 0.9, 0.01, (0.8874, 0.9885), (0.1669, 0.4355), (0.1669, 0.4355)),
    (256, 1, "resnet50", "resize", 0.9, 0.01, (0.9232, 0.9963), (0.3041, 0.6012), (0.3041, 0.6012)),
]
SETTINGS = ("data.image_size", "data.crops", "model.name", "data.view", "model.dropout", "model.l2")


def table_2() -> list[RunResult]:
    results = []
    for number, row in enumerate(TABLE_2, start=1):
        metrics: dict[str, float] = {}
        for split, figures in zip(("train", "val", "test"), row[6:], strict=True):
            if figures:
                metrics |= {f"{split}_accuracy": figures[0], f"{split}_top5_accuracy": figures[1]}
        if metrics:
            metrics["gap"] = metrics["train_accuracy"] - metrics["val_accuracy"]
        params = dict(zip(SETTINGS, row[:6], strict=True))
        state: Literal["done", "missing"] = "done" if metrics else "missing"
        results.append(RunResult(f"row-{number}", f"row {number}", state, params=params, metrics=metrics))
    return results


def finished(trial_id: str, params: dict[str, Any] | None = None, **metrics: float) -> RunResult:
    return RunResult(
        trial_id, trial_id, "done", params={"name": trial_id} if params is None else params, metrics=metrics
    )


def titled(findings: Sequence[Finding], words: str) -> Finding:
    (found,) = [finding for finding in findings if words in finding.title]
    return found


def titles(results: Sequence[RunResult], objective: Objective | None = None) -> str:
    return " | ".join(finding.title for finding in check(results, objective or Objective()))


# -- the sources' own table ----------------------------------------------------------------------


def test_table_2_shows_validation_equal_to_test_in_seven_of_eight_rows() -> None:
    finding = titled(check(table_2(), Objective()), "Validation equals test")
    assert "7 of 8" in finding.title
    assert finding.level == "error"
    assert finding.trials == ("row-2", "row-3", "row-4", "row-5", "row-8", "row-9", "row-10")


def test_table_2_shows_rows_1_and_2_as_equal_under_different_l2() -> None:
    finding = titled(check(table_2(), Objective()), "equal scores under different settings")
    assert finding.trials == ("row-1", "row-2")
    assert "model.l2 (null, 0.001)" in finding.detail
    assert "dropout" not in finding.detail


def test_table_2_shows_its_two_empty_rows_as_missing() -> None:
    assert titled(check(table_2(), Objective()), "2 of 10 trials are missing").trials == ("row-6", "row-7")


def test_table_2_shows_that_its_networks_learn_by_heart() -> None:
    finding = titled(check(table_2(), Objective()), "Large gap")
    assert len(finding.trials) == 8
    assert finding.trials[0] == "row-9"


def test_table_2_raises_nothing_else() -> None:
    assert len(check(table_2(), Objective())) == 4


# -- one check after the other -------------------------------------------------------------------


def test_a_sound_study_raises_no_error_or_warning(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", per_class=60)
    fakes = [replace(fake, skill=4) for fake in grid_of_fakes(train__seed=[0, 1, 2])]
    study = make_study(tmp_path, fakes, dataset=dataset)
    findings = check(gather(study), read_study(study).objective, dataset.manifest)
    assert [finding for finding in findings if finding.level != "note"] == []


def test_equal_accuracy_with_another_loss_is_a_coincidence() -> None:
    first = finished("a", val_accuracy=1, val_loss=0.1, test_accuracy=1, test_loss=0.11, train_accuracy=1)
    second = finished("b", val_accuracy=1, val_loss=0.2, test_accuracy=1, test_loss=0.21, train_accuracy=1)
    assert titles([first, second]) == ""


def test_twins_without_different_settings_are_not_called_different() -> None:
    scores = {"val_accuracy": 0.8, "test_accuracy": 0.7}
    assert titles([finished("a", {}, **scores), finished("b", {}, **scores)]) == ""


def test_a_winner_chosen_on_test_is_an_error() -> None:
    findings = check([finished("a", val_accuracy=0.8, test_accuracy=0.7)], Objective("test_accuracy"))
    assert titled(findings, "chosen on the test split").level == "error"


def test_a_study_without_a_test_split_is_labelled_validation() -> None:
    assert (
        "read it as validation" in titled(check([finished("a", val_accuracy=0.8)], Objective()), "no test split").detail
    )


def test_single_trials_without_test_figures_are_named() -> None:
    results = [finished("a", val_accuracy=0.8), finished("b", val_accuracy=0.7, test_accuracy=0.71)]
    assert titled(check(results, Objective()), "1 trial has no test").trials == ("a",)


def test_an_objective_that_no_run_recorded_is_an_error() -> None:
    assert "No finished trial has the metric" in titles([finished("a", val_accuracy=0.8)], Objective("val_macro_f1"))


@pytest.mark.parametrize(
    ("state", "words", "level"),
    [
        ("failed", "failed", "error"),
        ("diverged", "diverged", "error"),
        ("damaged", "is damaged", "error"),
        ("missing", "is missing", "warning"),
        ("interrupted", "was interrupted", "warning"),
        ("running", "is still running", "note"),
    ],
)
def test_what_did_not_end_well_is_named(state: Any, words: str, level: str) -> None:
    findings = check([RunResult("a", "a", state)], Objective())
    assert titled(findings, f"1 of 1 trials {words}").level == level


def test_predictions_that_all_fall_into_one_class_are_an_error() -> None:
    labels = np.array([0, 0, 0, 1, 2])
    evaluation = score(labels, np.tile([0.8, 0.1, 0.1], (5, 1)), ["a", "b", "c"])
    result = replace(finished("x", val_accuracy=0.6, test_accuracy=0.6), evaluations={"val": evaluation})
    findings = check([result], Objective())
    assert titled(findings, "All predictions fall into one class").trials == ("x",)
    assert "60.0%" in titled(findings, "no better than always naming one class").detail


def test_seeds_that_differ_more_than_settings_are_flagged() -> None:
    values = {0.1: (0.70, 0.80), 0.4: (0.72, 0.80)}
    results = [
        finished(f"{dropout}{seed}", {"model.dropout": dropout, "train.seed": seed}, val_accuracy=value)
        for dropout, pair in values.items()
        for seed, value in enumerate(pair)
    ]
    assert "Seeds differ more than settings" in titles(results)


def test_settings_that_differ_more_than_seeds_are_not_flagged() -> None:
    values = {0.1: (0.70, 0.71), 0.4: (0.80, 0.81)}
    results = [
        finished(f"{dropout}{seed}", {"model.dropout": dropout, "train.seed": seed}, val_accuracy=value)
        for dropout, pair in values.items()
        for seed, value in enumerate(pair)
    ]
    assert "Seeds" not in titles(results)


def test_test_far_above_validation_is_flagged() -> None:
    assert "Test is much better" in titles([finished("a", val_accuracy=0.6, test_accuracy=0.7)])


def test_test_above_validation_on_a_handful_of_pictures_is_chance(tmp_path: Path) -> None:
    (result,) = gather(make_study(tmp_path, [Fake()], per_class=4))
    result = replace(result, metrics={"val_accuracy": 0.6, "test_accuracy": 0.7})
    assert "Test is much better" not in titles([result])


def test_tiny_classes_are_named_with_their_counts(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", per_class=20)
    study = make_study(tmp_path, [Fake()], dataset=dataset)
    finding = titled(check(gather(study), read_study(study).objective, dataset.manifest), "3 classes are tiny")
    assert "cat (2 to validate on)" in finding.detail


def test_a_tiny_class_that_no_trial_was_asked_to_tell_apart_is_not_complained_of(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", per_class=20)
    study = make_study(tmp_path, [Fake()], dataset=dataset)
    left_out = {"slug": "left_out", "counts": {"train": 2, "val": 1, "test": 1}}
    manifest = {**dataset.manifest, "classes": [*dataset.manifest["classes"], left_out]}
    findings = check(gather(study), read_study(study).objective, manifest)
    assert "left_out" not in titled(findings, "tiny").detail


def test_pictures_left_out_of_the_scores_are_an_error(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", per_class=60)
    study = make_study(tmp_path, [Fake()], dataset=dataset)
    (result,) = gather(study)
    short = replace(result.evaluations["val"], count=result.evaluations["val"].count - 7)
    result = replace(result, evaluations={**result.evaluations, "val": short})
    finding = titled(check([result], Objective(), dataset.manifest), "not scored on exactly their split")
    assert "11 of 18 val pictures" in finding.detail


def test_trials_on_different_data_are_not_compared_in_silence() -> None:
    results = [
        replace(finished(name, val_accuracy=value, test_accuracy=value + 0.01), environment={"data_digest": digest})
        for name, value, digest in (("a", 0.5, "x"), ("b", 0.6, "x"), ("c", 0.7, "y"))
    ]
    assert titled(check(results, Objective()), "another data set").trials == ("c",)


def test_a_data_set_at_hand_that_is_not_the_trained_one_is_said_and_not_used(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data")
    study = make_study(tmp_path, [Fake(skill=4)])
    findings = check(gather(study), read_study(study).objective, dataset.manifest)
    assert titled(findings, "not the one that was trained on").level == "warning"
    assert "exactly" not in " ".join(finding.title for finding in findings)


def test_errors_stand_before_warnings_and_notes() -> None:
    results = [*table_2(), RunResult("r", "r", "running"), RunResult("f", "f", "failed")]
    levels = [finding.level for finding in check(results, Objective())]
    assert levels == sorted(levels, key=("error", "warning", "note").index)


def test_nothing_at_all_raises_nothing() -> None:
    assert check([], Objective()) == []


# -- machines ------------------------------------------------------------------------------------


def test_trials_that_paid_for_a_gpu_and_did_not_use_it_are_named() -> None:
    rented = {"instance": "ml.g4dn.xlarge", "driver": "550.163"}
    results = [
        replace(finished("slow"), environment={**rented, "gpus": []}),
        replace(finished("quick"), environment={**rented, "gpus": ["Tesla T4"]}),
        replace(finished("own"), environment={"instance": None, "gpus": []}),
        replace(finished("old"), environment=rented),
        replace(finished("rehearsed"), environment={"instance": "ml.g4dn.xlarge", "driver": None, "gpus": []}),
    ]
    finding = titled(check(results, Objective()), "without the GPU")
    assert finding.trials == ("slow",) and "1 trial trained" in finding.title
    assert "ml.g4dn.xlarge" in finding.detail and "tensorflow[and-cuda]" in finding.detail
