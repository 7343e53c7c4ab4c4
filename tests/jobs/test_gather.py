"""jobs.gather: a row a trial whatever became of it, the right winner, and best/ in one step."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artclf.errors import ConfigError, StorageError
from artclf.rundir import RunDir
from jobs.gather import RunResult, export_best, gather, read_study, seed_groups, winner, write_results
from jobs.grid import Objective
from jobs.report import write_report
from tests.studies import NASTY, Fake, grid_of_fakes, make_study, rewrite

COLUMNS = (
    "train_accuracy,train_top5_accuracy,val_accuracy,val_top5_accuracy,test_accuracy,test_top5_accuracy,val_macro_f1,"
    "test_macro_f1,gap,best_epoch,epochs,seconds,images_per_second,device,instance,cost_usd,parameters"
)


def finished(trial_id: str, value: float, parameters: int | None = 10, metric: str = "val_accuracy") -> RunResult:
    return RunResult(trial_id, trial_id, "done", metrics={metric: value}, parameters=parameters)


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# -- reading -------------------------------------------------------------------------------------


def test_every_trial_has_a_row_whatever_became_of_it(tmp_path: Path) -> None:
    states = ("done", "failed", "interrupted", "diverged", "running", None)
    study = make_study(tmp_path, [Fake({"train.seed": i}, state=state) for i, state in enumerate(states)])  # type: ignore[arg-type]
    found = [result.state for result in gather(study)]
    assert found == ["done", "failed", "interrupted", "diverged", "running", "missing"]


def test_a_done_trial_has_its_scores_and_figures(tmp_path: Path) -> None:
    (result,) = gather(make_study(tmp_path, [Fake(epochs=8, gap=0.05, seconds=90, parameters=123)]))
    assert result.metrics["val_accuracy"] == result.evaluations["val"].accuracy
    assert result.metrics["test_macro_f1"] == result.evaluations["test"].macro_f1
    assert result.metrics["gap"] == pytest.approx(0.05)
    assert (result.epochs, result.best_epoch, result.seconds, result.parameters) == (8, 8, 90, 123)
    assert result.cost_usd == 0


def test_train_figures_are_those_of_the_epoch_whose_weights_were_kept(tmp_path: Path) -> None:
    study = make_study(tmp_path, [Fake()])
    run = RunDir(gather(study)[0].path)
    rewrite(run.model_json, best_epoch=3)
    assert gather(study)[0].metrics["train_accuracy"] == run.read_metrics()[2]["accuracy"]


def test_without_restoring_the_best_epoch_the_last_one_was_kept(tmp_path: Path) -> None:
    study = make_study(tmp_path, [Fake()])
    run = RunDir(gather(study)[0].path)
    rewrite(run.model_json, best_epoch=3)
    rewrite(run.config, train={"early_stopping": {"restore_best": False}})
    (result,) = gather(study)
    assert result.best_epoch == 3
    assert result.metrics["train_accuracy"] == run.read_metrics()[-1]["accuracy"]


def test_an_unfinished_trial_shows_its_best_epoch_so_far(tmp_path: Path) -> None:
    (result,) = gather(make_study(tmp_path, [Fake(state="failed", reason="no space left")]))
    assert result.reason == "no space left"
    assert result.metrics["val_accuracy"] == max(line["val_accuracy"] for line in result.history)
    assert "test_accuracy" not in result.metrics


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES: dict[str, Callable[[RunDir], object]] = {
    "status torn": lambda run: truncate(run.status),
    "status of an unknown state": lambda run: rewrite(run.status, state="happy"),
    "status a list": lambda run: run.status.write_text("[]"),
    "status without a state": lambda run: run.status.write_text("{}"),
    "seconds a text": lambda run: rewrite(run.status, seconds="many"),
    "scores torn": lambda run: truncate(run.evaluation_json("val")),
    "scores missing": lambda run: run.evaluation_json("val").unlink(),
    "scores of another form": lambda run: run.evaluation_json("test").write_text('{"accuracy": 1}'),
    "scores not text": lambda run: run.evaluation_json("test").write_bytes(b"\xff\xfe\x00"),
    "metrics not JSON": lambda run: run.metrics.write_text("epoch 1\n"),
    "metrics not text": lambda run: run.metrics.write_bytes(b"\xff\xfe\n"),
    "metrics a list": lambda run: run.metrics.write_text("[1]\n"),
    "model a list": lambda run: run.model_json.write_text("[]"),
    "environment torn": lambda run: truncate(run.environment),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_is_reported_as_damaged_and_the_others_are_read(tmp_path: Path, damage: str) -> None:
    study = make_study(tmp_path, grid_of_fakes(train__seed=[0, 1]))
    DAMAGES[damage](RunDir(gather(study)[0].path))
    first, second = gather(study)
    assert (first.state, second.state) == ("damaged", "done")
    assert "Submit again" in first.reason
    assert winner([first, second], read_study(study).objective) == second


def test_s18_of_foreign_metrics_the_last_line_of_an_epoch_counts_whatever_their_order_gaps_and_fields(
    tmp_path: Path,
) -> None:
    study = make_study(tmp_path, [Fake(state="failed", reason="")])
    lines: list[dict[str, Any]] = [
        {"epoch": 5, "val_accuracy": 0.5, "loss": math.nan},
        {"epoch": 2, "val_accuracy": 0.9},
        {"epoch": 2, "val_accuracy": 0.2, "schema": 99, "of_another_version": {"x": [1]}},
        {"epoch": 1, "val_accuracy": -math.inf},
    ]
    RunDir(gather(study)[0].path).metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (result,) = gather(study)
    assert [line["epoch"] for line in result.history] == [1, 2, 5]
    assert [line.get("val_accuracy") for line in result.history] == [None, 0.2, 0.5]
    assert result.state == "failed" and result.best_epoch == 5 and "loss" not in result.history[2]
    write_report(study, None)


@pytest.mark.parametrize("epoch", ["two", 1.5, True, 0, -1, None])
def test_s18_a_line_without_the_number_of_its_epoch_is_damage(tmp_path: Path, epoch: Any) -> None:
    study = make_study(tmp_path, [Fake()])
    RunDir(gather(study)[0].path).metrics.write_text(json.dumps({"epoch": epoch, "loss": 1.0}) + "\n")
    (result,) = gather(study)
    assert result.state == "damaged" and "each with its number from 1 on" in result.reason


def test_a_metrics_line_cut_short_by_a_crash_is_no_damage(tmp_path: Path) -> None:
    study = make_study(tmp_path, [Fake(epochs=4)])
    with open(RunDir(gather(study)[0].path).metrics, "a") as file:
        file.write('{"epoch": 5, "lo')
    (result,) = gather(study)
    assert (result.state, result.epochs) == ("done", 4)


def test_figures_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    study = make_study(tmp_path, [Fake(state="diverged", epochs=2)])
    run = RunDir(gather(study)[0].path)
    run.metrics.write_text('{"epoch": 1, "loss": NaN, "accuracy": 0.5, "val_accuracy": 0.4, "val_loss": Infinity}\n')
    (result,) = gather(study)
    assert set(result.metrics) == {"train_accuracy", "val_accuracy", "gap"}


def test_a_running_trial_whose_process_is_gone_has_failed_without_a_verdict(tmp_path: Path) -> None:
    study = make_study(tmp_path, [Fake(state="running")])
    run = RunDir(gather(study)[0].path)
    assert gather(study)[0].state == "running"  # a copy from elsewhere: nothing is known of its process
    with run.locked():
        assert gather(study)[0].state == "running"
    assert gather(study)[0].state == "failed" and "without a verdict" in gather(study)[0].reason


def test_a_folder_without_a_study_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="jobs submit"):
        gather(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{}", '{"study": "x", "trials": [1]}', "{"])
def test_a_damaged_study_file_is_a_storage_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(StorageError, match=r"study\.json"):
        gather(tmp_path)


def test_the_price_of_the_time_follows_from_the_rate_of_the_instance(tmp_path: Path) -> None:
    study = make_study(tmp_path, [Fake(seconds=1800, environment={"instance": "g4dn.xlarge"})])
    assert gather(study)[0].cost_usd is None
    rewrite(study / "study.json", resources={"usd_per_hour": 0.5})
    assert gather(study)[0].cost_usd == pytest.approx(0.25)


# -- comparing -----------------------------------------------------------------------------------


def test_the_winner_is_the_finished_trial_with_the_best_objective() -> None:
    unfinished = replace(finished("a", 0.99), state="failed")
    results = [unfinished, finished("b", 0.7), finished("c", 0.8)]
    assert winner(results, Objective()) == results[2]
    assert winner(results, Objective(mode="min")) == results[1]


def test_ties_go_to_fewer_parameters_then_to_the_smaller_id() -> None:
    large, small = finished("a", 0.8, parameters=20), finished("c", 0.8, parameters=10)
    assert winner([large, small], Objective()) == small
    assert winner([small, finished("b", 0.8, parameters=10)], Objective()) == finished("b", 0.8, parameters=10)
    assert winner([finished("a", 0.8, parameters=None), large], Objective()) == large


def test_without_a_finished_trial_there_is_no_winner() -> None:
    assert winner([], Objective()) is None
    assert winner([finished("a", 0.8)], Objective("val_macro_f1")) is None


@given(st.permutations([finished(f"{i}", value) for i, value in enumerate((0.1, 0.9, 0.9, 0.5))]))
def test_the_winner_does_not_depend_on_the_order_of_the_trials(results: list[RunResult]) -> None:
    found = winner(results, Objective())
    assert found is not None
    assert found.trial_id == "1"


def test_trials_that_differ_only_in_the_seed_form_one_group(tmp_path: Path) -> None:
    study = make_study(tmp_path, grid_of_fakes(model__dropout=[0.1, 0.4], train__seed=[0, 1, 2]))
    groups = seed_groups(gather(study))
    assert [dict(group.params) for group in groups] == [{"model.dropout": 0.1}, {"model.dropout": 0.4}]
    assert [len(group.results) for group in groups] == [3, 3]


def test_a_group_has_the_mean_and_the_sample_deviation_of_its_seeds() -> None:
    trials = [finished("a", 0.7), finished("b", 0.8), finished("c", 0.9)]
    (group,) = seed_groups(trials)
    assert group.mean("val_accuracy") == pytest.approx(0.8)
    assert group.spread("val_accuracy") == pytest.approx(0.1)
    assert group.mean("test_accuracy") is None
    assert seed_groups(trials[:1])[0].spread("val_accuracy") is None


def test_values_of_different_kinds_are_different_settings() -> None:
    values = (None, "null", 1, "1", [1], True)
    results = [replace(finished(str(i), 0.5), params={"model.l2": value}) for i, value in enumerate(values)]
    assert len(seed_groups(results)) == len(values)


# -- writing -------------------------------------------------------------------------------------


def test_results_csv_has_the_agreed_columns_in_order(tmp_path: Path) -> None:
    study = make_study(tmp_path, grid_of_fakes(model__dropout=[0.1, 0.4], train__seed=[0]))
    path = write_results(study, gather(study))
    header = path.read_text().splitlines()[0]
    assert header == f"trial_id,label,state,reason,model.dropout,train.seed,{COLUMNS}"


def test_results_csv_has_a_row_for_failed_and_missing_trials_too(tmp_path: Path) -> None:
    study = make_study(tmp_path, [Fake(), Fake(state="failed", reason="out of disk"), Fake(state=None)])
    rows = rows_of(write_results(study, gather(study)))
    assert [(row["state"], row["reason"]) for row in rows] == [
        ("done", ""),
        ("failed", "out of disk"),
        ("missing", "not started yet"),
    ]
    assert rows[2]["val_accuracy"] == ""


def test_a_null_setting_and_one_that_does_not_apply_are_told_apart(tmp_path: Path) -> None:
    study = make_study(tmp_path, [Fake({"model.l2": None}), Fake({"model.filters": [64, 128]})])
    rows = rows_of(write_results(study, gather(study)))
    assert [row["model.l2"] for row in rows] == ["null", ""]
    assert [row["model.filters"] for row in rows] == ["", "[64, 128]"]


def test_results_csv_keeps_every_digit(tmp_path: Path) -> None:
    study = make_study(tmp_path, [Fake()])
    (result,) = gather(study)
    (row,) = rows_of(write_results(study, [result]))
    assert float(row["val_accuracy"]) == result.metrics["val_accuracy"]


def test_a_repeated_gather_changes_nothing(tmp_path: Path) -> None:
    study = make_study(tmp_path, grid_of_fakes(train__seed=[0, 1]), classes=NASTY)
    before = write_results(study, gather(study)).read_bytes()
    assert write_results(study, gather(study)).read_bytes() == before


def test_best_holds_the_winners_model_and_scores_and_says_whose_they_are(tmp_path: Path) -> None:
    study = make_study(tmp_path, grid_of_fakes(train__seed=[0, 1, 2]))
    first, second, _ = gather(study)
    export_best(study, first)
    best = export_best(study, second)
    assert (best / "model.keras").read_bytes() == RunDir(second.path).model.read_bytes()
    assert json.loads((best / "model.json").read_text())["trial_id"] == second.trial_id
    assert json.loads((best / "trial.json").read_text())["trial_id"] == second.trial_id
    assert (best / "evaluation" / "predictions_test.csv").is_file()
    assert [path.name for path in study.iterdir() if path.name.startswith(".tmp")] == []


def test_a_winner_without_a_model_leaves_best_as_it_was(tmp_path: Path) -> None:
    study = make_study(tmp_path, grid_of_fakes(train__seed=[0, 1]))
    first, second = gather(study)
    best = export_best(study, first)
    RunDir(second.path).model.unlink()
    with pytest.raises(StorageError, match=r"model\.keras"):
        export_best(study, second)
    assert json.loads((best / "trial.json").read_text())["trial_id"] == first.trial_id
