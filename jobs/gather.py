"""Run directories of a study → one result a trial, results.csv and best/.

Reads whatever is there and never fails over a single run: a trial that was not started is
``missing``, one whose files contradict each other or cannot be read is ``damaged`` with the reason.
What the figures mean is jobs.checks' and jobs.report's business.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from artclf.errors import ArtclfError, ConfigError, StorageError, storage_error
from artclf.evaluate import Evaluation
from artclf.rundir import RunDir, RunStatus, read_json, write_json
from artclf.storage import atomic_folder
from artclf.tables import write_csv
from jobs.grid import Objective
from jobs.spec import JobState, outcome

ResultState = Literal["done", "failed", "interrupted", "diverged", "running", "missing", "damaged"]
SEED = "train.seed"
SPLITS = ("val", "test")
RATES = ("accuracy", "top5_accuracy", "macro_f1", "weighted_f1", "loss")
METRIC_COLUMNS = (
    "train_accuracy",
    "train_top5_accuracy",
    "val_accuracy",
    "val_top5_accuracy",
    "test_accuracy",
    "test_top5_accuracy",
    "val_macro_f1",
    "test_macro_f1",
    "gap",
)


@dataclass(frozen=True)
class StudyInfo:
    """What study.json says.

    Attributes:
        varying: dotted names of the settings that differ between trials.
        trials: {"trial_id", "label", "params"} each, in the grid's order.
    """

    name: str
    dataset: str
    data_digest: str
    objective: Objective
    varying: tuple[str, ...]
    trials: tuple[Mapping[str, Any], ...]
    resources: Mapping[str, Any]
    grid: str


@dataclass(frozen=True)
class RunResult:
    """How one trial stands and what it scored.

    Attributes:
        params: the varying settings of this trial by dotted name.
        metrics: {train,val,test}_{accuracy,top5_accuracy,macro_f1,weighted_f1,loss} as far as known, and
            ``gap``, train minus validation accuracy. Train figures are those of the epoch whose weights
            were kept. A trial that is not done has the validation figures of its best epoch so far.
        history: the lines of metrics.jsonl.
        images_per_second: the median epoch's, so that the first epoch's warming up does not count.
        cost_usd: 0 on one's own machine; None where the price of the instance is not known.
        model: model.json.
        environment: environment.json.
    """

    trial_id: str
    label: str
    state: ResultState
    reason: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    path: Path = Path()
    evaluations: Mapping[str, Evaluation] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()
    best_epoch: int | None = None
    epochs: int = 0
    seconds: float | None = None
    ended: str = ""
    images_per_second: float | None = None
    cost_usd: float | None = None
    parameters: int | None = None
    model: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> str | None:
        """The GPU's name, or the processor's where there is none."""
        return self.environment.get("device")

    @property
    def instance(self) -> str | None:
        """The rented machine's type; None on one's own."""
        return self.environment.get("instance")


@dataclass(frozen=True)
class SeedGroup:
    """Trials whose settings differ in nothing but the seed."""

    params: Mapping[str, Any]
    results: tuple[RunResult, ...]

    def values(self, metric: str) -> list[float]:
        """Returns the metric of each trial that has it."""
        return [r.metrics[metric] for r in self.results if metric in r.metrics]

    def mean(self, metric: str) -> float | None:
        """Returns the mean over the seeds; None if no trial has the metric."""
        values = self.values(metric)
        return statistics.fmean(values) if values else None

    def spread(self, metric: str) -> float | None:
        """Returns the standard deviation over the seeds (n - 1); None for fewer than two."""
        values = self.values(metric)
        return statistics.stdev(values) if len(values) > 1 else None


# -- reading -------------------------------------------------------------------------------------


def read_study(study_dir: Path) -> StudyInfo:
    """Returns what study.json says.

    Raises:
        ConfigError: if there is no study in the folder.
        StorageError: if study.json is not readable or not in the form.
    """
    path = study_dir / "study.json"
    content = read_json(path)
    if content is None:
        raise ConfigError(
            f"{study_dir}: no study here (no study.json). Start one with: python -m jobs submit GRID.yaml"
        )
    try:
        return StudyInfo(
            name=str(content["study"]),
            dataset=str(content["dataset"]),
            data_digest=str(content["data_digest"]),
            objective=Objective(**content["objective"]),
            varying=tuple(content["varying"]),
            trials=tuple(
                {"trial_id": t["trial_id"], "label": t["label"], "params": t["params"]} for t in content["trials"]
            ),
            resources=content.get("resources") or {},
            grid=str(content.get("grid") or ""),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise StorageError(
            f"{path}: not in the form of a study ({error!r}). Submit the grid again to write it anew."
        ) from error


def gather(study_dir: Path) -> list[RunResult]:
    """Returns one result for each trial of study.json, in its order; changes nothing.

    Raises:
        ConfigError: if there is no study in the folder.
        StorageError: if study.json itself is damaged.
    """
    study = read_study(study_dir)
    return [_read_run(RunDir(study_dir / "runs" / t["trial_id"]), t, study) for t in study.trials]


def _read_run(run: RunDir, trial: Mapping[str, Any], study: StudyInfo) -> RunResult:
    known = {"trial_id": trial["trial_id"], "label": trial["label"], "params": trial["params"], "path": run.path}
    damage: list[str] = []
    status: RunStatus | None = _sound(run.read_status, damage)
    if status is None and not damage:
        return RunResult(**known, state="missing", reason="not started yet")
    history = _sound(lambda: _epochs(run), damage) or []
    model = _sound(lambda: _mapping(run.model_json), damage) or {}
    environment = _sound(lambda: _mapping(run.environment), damage) or {}
    evaluations = {s: e for s in SPLITS if (e := _sound(lambda s=s: _evaluation(run, s), damage))}
    seconds = _sound(lambda: float(status.seconds), damage) if status else None
    state, reason = _state(run, status, evaluations, damage)
    best, kept = _best_and_kept(run, model, history)
    return RunResult(
        **known,
        state=state,
        reason=reason,
        metrics=_metrics(evaluations, kept, done=state == "done"),
        evaluations=evaluations,
        history=history,
        best_epoch=best,
        epochs=len(history),
        seconds=seconds,
        ended=status.ended if status else "",
        images_per_second=_median(_number(line.get("images_per_second")) for line in history),
        cost_usd=_cost(seconds, environment, study.resources),
        parameters=model["parameters"] if isinstance(model.get("parameters"), int) else None,
        model=model,
        environment=environment,
    )


def _sound(read: Any, damage: list[str]) -> Any:
    """Returns what a reader returns; what is wrong with the file is noted and None returned."""
    try:
        return read()
    except ArtclfError as error:
        damage.append(str(error).rstrip("."))
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        damage.append(f"{type(error).__name__}: {error}".rstrip("."))
    return None


def _state(
    run: RunDir, status: RunStatus | None, evaluations: Mapping[str, Evaluation], damage: list[str]
) -> tuple[ResultState, str]:
    if damage or status is None:
        return "damaged", f"{'; '.join(damage)}. Submit again to run it anew."
    if status.state == "done" and "val" not in evaluations:
        return "damaged", "it says that it is done, but evaluation/val.json is not there. Submit again to run it anew."
    # A run without a lock file is a copy from elsewhere: whether its machine still works cannot be seen here.
    alive = run.is_locked() or not (run.path / ".lock").exists()
    at_work = alive and status.state == "running"
    result = outcome(JobState.RUNNING if at_work else JobState.STOPPED, status)
    return cast("ResultState", result.state), result.reason or status.reason


def _epochs(run: RunDir) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl in the order of epochs, whatever wrote them: of several of one epoch the
    last counts, a figure that is not finite is as good as none, epochs may be missing, other fields are kept.

    Raises:
        StorageError: if a line has no number of its epoch.
    """
    history: dict[int, dict[str, Any]] = {}
    for line in run.read_metrics():
        epoch = line.get("epoch")
        if not isinstance(epoch, int) or isinstance(epoch, bool) or epoch < 1:
            raise StorageError(
                f"{run.metrics}: expected a line an epoch, each with its number from 1 on, received {epoch!r:.40}"
            )
        history[epoch] = {k: v for k, v in line.items() if not (isinstance(v, float) and not math.isfinite(v))}
    return [history[epoch] for epoch in sorted(history)]


def _mapping(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if content is not None and not isinstance(content, dict):
        raise StorageError(f"{path}: expected a mapping, found something else")
    return content or {}


def _evaluation(run: RunDir, split: str) -> Evaluation | None:
    path = run.evaluation_json(split)
    content = read_json(path)
    if content is None:
        return None
    try:
        return Evaluation.from_dict(content)
    except ValueError as error:
        raise StorageError(f"{path}: {error}") from error


def _best_and_kept(
    run: RunDir, model: Mapping[str, Any], history: Sequence[Mapping[str, Any]]
) -> tuple[int | None, Mapping[str, Any]]:
    """Returns the best epoch's number, and the line of the epoch whose weights were kept."""
    if not history:
        return None, {}
    stopping = _stopping(run)
    metric = stopping.get("metric", "val_accuracy")
    sign = -1 if metric.endswith("loss") else 1
    scored = [line for line in history if _number(line.get(metric)) is not None]
    best = model.get("best_epoch") or (max(scored, key=lambda line: sign * line[metric])["epoch"] if scored else None)
    kept = best if stopping.get("restore_best", True) else history[-1]["epoch"]
    return best, next((line for line in history if line["epoch"] == kept), {})


def _stopping(run: RunDir) -> Mapping[str, Any]:
    """Returns the run's settings of early stopping, or the usual ones where its config cannot be read:
    they only decide which epoch's train figures are shown."""
    try:
        return run.read_config().train.early_stopping.model_dump()
    except (ArtclfError, OSError, ValueError):
        return {}


def _metrics(evaluations: Mapping[str, Evaluation], kept: Mapping[str, Any], *, done: bool) -> dict[str, float]:
    metrics: dict[str, float | None] = {
        f"train_{rate}": _number(kept.get(rate)) for rate in ("accuracy", "top5_accuracy", "loss")
    }
    if not done:
        metrics |= {f"val_{rate}": _number(kept.get(f"val_{rate}")) for rate in ("accuracy", "top5_accuracy", "loss")}
    for split, evaluation in evaluations.items():
        metrics |= {f"{split}_{rate}": _number(getattr(evaluation, rate)) for rate in RATES}
    found = {name: value for name, value in metrics.items() if value is not None}
    if "train_accuracy" in found and "val_accuracy" in found:
        found["gap"] = found["train_accuracy"] - found["val_accuracy"]
    return found


def _cost(seconds: float | None, environment: Mapping[str, Any], resources: Mapping[str, Any]) -> float | None:
    """Returns the price of the time; study.json's resources hold usd_per_hour where the launcher knows it."""
    if not environment or seconds is None:
        return None
    if not environment.get("instance"):
        return 0.0
    price = _number(resources.get("usd_per_hour"))
    return None if price is None else seconds / 3600 * price


def _number(value: Any) -> float | None:
    """Returns a finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


# -- comparing -----------------------------------------------------------------------------------


def ranked(results: Sequence[RunResult], objective: Objective) -> list[RunResult]:
    """Returns the finished trials, best first: by the objective, then fewer parameters, then trial_id."""
    sign = -1 if objective.mode == "max" else 1
    scored = [r for r in results if r.state == "done" and objective.metric in r.metrics]
    return sorted(
        scored,
        key=lambda r: (
            sign * r.metrics[objective.metric],
            r.metrics.get("val_loss", math.inf),
            math.inf if r.parameters is None else r.parameters,
            r.trial_id,
        ),
    )


def winner(results: Sequence[RunResult], objective: Objective) -> RunResult | None:
    """Returns the best finished trial, or None if no finished trial has the objective's metric."""
    return next(iter(ranked(results, objective)), None)


def seed_groups(results: Sequence[RunResult]) -> list[SeedGroup]:
    """Returns the finished trials grouped by all varying settings but the seed, in order of first appearance."""
    groups: dict[str, list[RunResult]] = {}
    for result in results:
        if result.state == "done":
            groups.setdefault(settings_key(without_seed(result.params)), []).append(result)
    return [SeedGroup(without_seed(members[0].params), tuple(members)) for members in groups.values()]


def without_seed(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings but the seed."""
    return {name: value for name, value in params.items() if name != SEED}


def settings_key(params: Mapping[str, Any]) -> str:
    """Returns a text that is equal for equal settings."""
    return json.dumps(params, sort_keys=True, ensure_ascii=False)


def setting_text(value: Any) -> str:
    """Returns a setting's value as a person writes it in a grid."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# -- writing -------------------------------------------------------------------------------------


def write_results(study_dir: Path, results: Sequence[RunResult]) -> Path:
    """Writes results.csv, a row a trial, and returns its path.

    A setting that a trial has as null reads ``null``; one that it does not have is empty.
    """
    varying = read_study(study_dir).varying
    header = ["trial_id", "label", "state", "reason", *varying, *METRIC_COLUMNS, "best_epoch", "epochs", "seconds"]
    header += ["images_per_second", "device", "instance", "cost_usd", "parameters"]
    path = study_dir / "results.csv"
    write_csv(path, header, (_row(result, varying) for result in results))
    return path


def _row(result: RunResult, varying: Sequence[str]) -> list[Any]:
    return [
        result.trial_id,
        result.label,
        result.state,
        result.reason,
        *(setting_text(result.params[name]) if name in result.params else None for name in varying),
        *(result.metrics.get(name) for name in METRIC_COLUMNS),
        result.best_epoch,
        result.epochs,
        result.seconds,
        result.images_per_second,
        result.device,
        result.instance,
        None if result.cost_usd is None else round(result.cost_usd, 4),
        result.parameters,
    ]


def export_best(study_dir: Path, winner: RunResult) -> Path:
    """Replaces best/ by the winner's model and scores, in one step, and returns its path.

    best/trial.json says whose they are.

    Raises:
        StorageError: if a file of the winner is missing or cannot be copied; best/ is as before then.
    """
    run = RunDir(winner.path)
    best = study_dir / "best"
    for file in (run.model, run.model_json):
        if not file.is_file():
            raise StorageError(f"{file}: expected the winner's model, found no file. Submit again to run it anew.")
    with atomic_folder(best) as folder:
        try:
            for file in (run.model, run.model_json):
                shutil.copyfile(file, folder / file.name)
            shutil.copytree(run.evaluation, folder / run.evaluation.name)
        except OSError as error:
            raise storage_error("copy the winner from", winner.path, error) from error
        about = {"trial_id": winner.trial_id, "label": winner.label, "params": dict(winner.params)}
        write_json(folder / "trial.json", about)
    return best
