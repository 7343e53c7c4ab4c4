"""The trainer for real, on a few dozen small pictures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artclf.config import TrainConfig, trial_id
from artclf.errors import ConfigError, DivergedError, Interrupted, ResumeError, StorageError
from artclf.interrupt import StopRequest
from artclf.records import Dataset
from artclf.rundir import RunDir, read_json
from artclf.training import Options, Training, TrainState, train
from tests.crash import LeaveAt, place_gone_on_from

SMALL = {
    "model.name": "cnn_tiny",
    "model.head": [16],
    "data.image_size": 16,
    "train.batch_size": 20,
    "train.epochs": 3,
}


def settings(**more: Any) -> TrainConfig:
    return TrainConfig.from_settings({**SMALL, **{name.replace("__", "."): value for name, value in more.items()}})


def train_to_the_end(folder: Path, dataset: Dataset, config: TrainConfig) -> RunDir:
    run = RunDir(folder)
    train(run, dataset, config, StopRequest())
    return run


def result(run: RunDir) -> Any:
    """Returns all that a run computed: its metrics without times, its scores and its predictions."""
    times = ("seconds", "images_per_second")
    metrics = [{k: v for k, v in line.items() if k not in times} for line in run.read_metrics()]
    scores = [read_json(run.evaluation_json(split)) for split in ("val", "test")]
    return metrics, scores, run.predictions_csv("test").read_text()


def test_the_loss_falls_and_a_finished_run_leaves_every_file(tiny_set: Dataset, tmp_path: Path) -> None:
    run = train_to_the_end(
        tmp_path / "run", tiny_set, settings(train__epochs=20, data__image_size=32, train__learning_rate=3e-3)
    )
    metrics = run.read_metrics()
    status = run.read_status()
    assert metrics[-1]["loss"] < 0.5 * metrics[0]["loss"]
    assert status is not None and status.state == "done" and status.epoch == 20 and status.attempt == 1
    for path in (run.model, run.model_json, run.environment, run.predictions_csv("val"), run.evaluation_json("test")):
        assert path.stat().st_size > 0


def test_every_picture_is_evaluated_also_when_batches_do_not_divide_the_split(
    tiny_set: Dataset, tmp_path: Path
) -> None:
    run = train_to_the_end(tmp_path / "run", tiny_set, settings(evaluate__batch_size=4, train__epochs=1))
    for split in ("val", "test"):
        expected = len(tiny_set.select(split))
        assert read_json(run.evaluation_json(split))["count"] == expected
        assert len(run.predictions_csv(split).read_text().splitlines()) == expected + 1


def test_two_runs_of_one_seed_agree_to_the_bit_and_another_seed_differs(tiny_set: Dataset, tmp_path: Path) -> None:
    config = settings(model__name="cnn_small", data__image_size=24)
    first, again = (result(train_to_the_end(tmp_path / name, tiny_set, config)) for name in ("a", "b"))
    other = result(
        train_to_the_end(
            tmp_path / "c", tiny_set, config.model_copy(update={"train": config.train.model_copy(update={"seed": 1})})
        )
    )
    assert first == again
    assert first != other


def test_a_model_read_in_again_gives_the_probabilities_that_were_recorded(tiny_set: Dataset, tmp_path: Path) -> None:
    from artclf.classes import choose_classes
    from artclf.images import read_picture
    from artclf.predict import load_classifier

    run = train_to_the_end(tmp_path / "run", tiny_set, settings(data__colour="grey", data__view="pad"))
    classifier = load_classifier(str(run.path))
    split = choose_classes(tiny_set, classifier.view).split(tiny_set, "test")
    pictures = [read_picture(tiny_set.read(record)).pixels for record in split.records.tolist()]
    again = np.array(list(classifier.probabilities(pictures)))
    lines = run.predictions_csv("test").read_text().splitlines()[1:]
    recorded = np.array([[float(cell) for cell in line.split(",")[5:]] for line in lines])
    assert np.abs(again - recorded).max() < 1e-5


def test_the_kept_weights_are_those_of_the_best_epoch(tiny_set: Dataset, tmp_path: Path) -> None:
    run = train_to_the_end(tmp_path / "run", tiny_set, settings(train__epochs=6, train__learning_rate=0.01))
    best = max(line["val_accuracy"] for line in run.read_metrics())
    info = read_json(run.model_json)
    assert read_json(run.evaluation_json("val"))["accuracy"] == pytest.approx(best)
    assert run.read_metrics()[info["best_epoch"] - 1]["val_accuracy"] == pytest.approx(best)


def test_a_loss_that_is_not_finite_ends_the_run_as_diverged_and_is_never_committed(
    tiny_set: Dataset, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    config = settings(train__optimizer="sgd", train__learning_rate=10.0, model__l2=10.0, train__epochs=30)
    with pytest.raises(DivergedError, match=r"Try a smaller train\.learning_rate"):
        train(run, tiny_set, config, StopRequest())
    status = run.read_status()
    assert status is not None and status.state == "diverged"
    assert all(np.isfinite(line["loss"]) for line in run.read_metrics())


def test_a_finished_run_is_not_run_again(tiny_set: Dataset, tmp_path: Path) -> None:
    run = train_to_the_end(tmp_path / "run", tiny_set, settings(train__epochs=1))
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    train(run, tiny_set, settings(train__epochs=1), StopRequest())
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before


def test_a_damaged_newest_state_costs_what_came_after_the_one_before_and_changes_no_result(
    tiny_set: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = settings()
    whole = train_to_the_end(tmp_path / "whole", tiny_set, config)
    run = RunDir(tmp_path / "run")
    with pytest.raises(Interrupted):
        train(run, tiny_set, config, LeaveAt(12))
    newest, older = sorted(run.checkpoints.glob("gen-*"), reverse=True)
    place = read_json(older / "state.json")["place"]
    (newest / "weights.npz").write_bytes(b"damaged")
    with caplog.at_level("INFO", "artclf"):
        train(run, tiny_set, config, StopRequest())
    assert place_gone_on_from(caplog.text) == (place["epoch"], place["step"])
    assert result(run) == result(whole)
    assert any(path.name.startswith("bad-gen-") for path in run.checkpoints.iterdir())


def test_a_state_of_other_settings_is_refused(tiny_set: Dataset, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    with pytest.raises(Interrupted):
        train(run, tiny_set, settings(), LeaveAt(6))
    with pytest.raises(ResumeError, match=r"other settings or data: train\.seed was 0, now 5"):
        train(run, tiny_set, settings(train__seed=5), StopRequest())


def stop_after_first_epoch(run: RunDir, dataset: Dataset, **more: Any) -> None:
    with pytest.raises(Interrupted):
        train(run, dataset, settings(**more), LeaveAt(6))


@pytest.mark.parametrize("lost", ["damaged", "removed"])
def test_a_run_whose_states_are_all_lost_does_not_begin_from_zero_unless_told(
    tiny_set: Dataset, tmp_path: Path, lost: str
) -> None:
    run = RunDir(tmp_path / "run")
    stop_after_first_epoch(run, tiny_set)
    for generation in run.checkpoints.glob("gen-*"):
        (generation / "state.json").write_text("{}") if lost == "damaged" else shutil.rmtree(generation)
    for _ in range(2):
        with pytest.raises(ResumeError, match=r"--run-dir .*run --from-zero"):
            train(run, tiny_set, settings(), StopRequest())
    train(run, tiny_set, settings(), StopRequest(), Options(from_zero=True))
    assert result(run) == result(train_to_the_end(tmp_path / "whole", tiny_set, settings()))
    assert (run.path / "checkpoint-1").is_dir()


def test_told_to_begin_from_zero_and_stopped_at_once_it_still_begins_from_zero(
    tiny_set: Dataset, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    stop_after_first_epoch(run, tiny_set)
    at_once = StopRequest()
    at_once.reason = "the test"
    with pytest.raises(Interrupted):
        train(run, tiny_set, settings(), at_once, Options(from_zero=True))
    assert run.read_metrics() == [] and not run.checkpoints.exists()
    train(run, tiny_set, settings(), StopRequest())
    assert [line["epoch"] for line in run.read_metrics()] == [1, 2, 3]


def test_a_done_run_whose_settings_were_changed_since_is_not_called_done(tiny_set: Dataset, tmp_path: Path) -> None:
    run = train_to_the_end(tmp_path / "run", tiny_set, settings(train__epochs=1))
    with pytest.raises(
        ResumeError, match=r"done, but not with these settings: train\.learning_rate was 0\.001, now 0\.5"
    ):
        train(run, tiny_set, settings(train__epochs=1, train__learning_rate=0.5), StopRequest())


def test_a_trainer_whose_lock_was_removed_commits_nothing_more(tiny_set: Dataset, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")

    class LockRemoved(LeaveAt):
        @property
        def requested(self) -> bool:
            (run.path / ".lock").unlink(missing_ok=True)
            return False

    with run.locked(), pytest.raises(StorageError, match=r"\.lock: was removed under a trainer at work"):
        train(run, tiny_set, settings(), LockRemoved(0))
    assert not list(run.checkpoints.glob("gen-*"))


def test_a_commit_that_would_not_end_in_time_is_not_begun(tiny_set: Dataset, tmp_path: Path) -> None:
    class NoTime(LeaveAt):
        def seconds_left(self) -> float:
            return 0.0

    run = RunDir(tmp_path / "run")
    with pytest.raises(Interrupted, match="only 0 s were left, so the last one before it stands"):
        train(run, tiny_set, settings(), NoTime(7))
    (newest,) = run.checkpoints.glob("gen-*")  # of the first epoch; none of the second
    assert read_json(newest / "state.json")["place"]["epoch"] == 1
    train(run, tiny_set, settings(), StopRequest())
    assert result(run) == result(train_to_the_end(tmp_path / "whole", tiny_set, settings()))


def committed_places(folder: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, **more: Any) -> list[Any]:
    """Returns the (epoch, step) of every commit of a run; each is waited for, so that none is passed over."""
    places = []
    hand_over = Training._hand_over

    def noting(self: Training, snapshot: Any) -> None:
        hand_over(self, snapshot)
        self.saver.flush()
        places.append((snapshot.state["place"]["epoch"], snapshot.state["place"]["step"]))

    monkeypatch.setattr(Training, "_hand_over", noting)
    train_to_the_end(folder, dataset, settings(**more))
    return places


def test_commits_come_every_so_many_epochs_and_at_the_end(
    tiny_set: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = {"epochs": 2, "minutes": None}
    found = committed_places(tmp_path / "run", tiny_set, monkeypatch, train__epochs=5, train__checkpoint_every=every)
    assert found == [(2, 0), (4, 0), (5, 0)]


def test_commits_come_every_so_many_minutes_within_an_epoch_too(
    tiny_set: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = {"epochs": 100, "minutes": 1e-9}
    found = committed_places(tmp_path / "run", tiny_set, monkeypatch, train__epochs=2, train__checkpoint_every=every)
    assert found == [(0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3), (2, 0)]


def test_how_often_a_run_is_saved_does_not_change_which_trial_it_is() -> None:
    often = settings(train__checkpoint_every={"epochs": 7, "minutes": 1.0})
    assert trial_id(often, "data") == trial_id(settings(), "data")


def test_a_failure_leaves_its_reason_in_the_status(tiny_set: Dataset, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    with pytest.raises(ConfigError):
        train(run, tiny_set, settings(data__classes={"top": 50}), StopRequest())
    status = run.read_status()
    assert status is not None and status.state == "failed" and "top: 50" in status.reason


# -- schedules: tables of what they say ----------------------------------------------------------


def rates(config: TrainConfig, values: list[float]) -> list[float]:
    """Returns the rate of each epoch when val_loss takes these values."""
    training = Training.__new__(Training)
    training.config, training.phases, training.state = config, config.phases(), TrainState()
    phase, found = training.phases[0], []
    for value in values:
        found.append(training.learning_rate(phase))
        training._watch_plateau(phase, value)
        training.state.phase_epoch += 1
    return found


def test_plateau_lowers_the_rate_after_patience_epochs_without_a_lower_loss() -> None:
    config = settings(
        train__schedule="plateau", train__learning_rate=1.0, train__plateau={"patience": 2, "factor": 0.5}
    )
    assert rates(config, [5, 4, 4, 4, 3, 3, 3, 3]) == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25]


def test_steps_lowers_the_rate_every_so_many_epochs() -> None:
    config = settings(train__schedule="steps", train__learning_rate=1.0, train__steps={"every": 2, "factor": 0.5})
    assert rates(config, [1] * 5) == [1, 1, 0.5, 0.5, 0.25]


def test_cosine_goes_from_the_rate_towards_zero_over_the_phase() -> None:
    config = settings(train__schedule="cosine", train__learning_rate=1.0, train__epochs=4)
    assert rates(config, [1] * 4) == pytest.approx([1, 0.853553, 0.5, 0.146447], abs=1e-6)


def test_progress_tells_epochs_steps_and_time_left(tiny_set: Dataset, tmp_path: Path) -> None:
    run = train_to_the_end(tmp_path / "run", tiny_set, settings(train__epochs=2))
    progress = json.loads(run.progress.read_text())
    assert progress["epochs"] == 2 and progress["steps"] == progress["step"] == 4
    assert progress["seconds_left"] == 0
