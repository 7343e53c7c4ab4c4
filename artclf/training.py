"""The training of one run, from wherever it stands to its verdict.

The story, top-down: restore the newest committed state;
for each phase and epoch train, validate, decide, commit; evaluate the best weights on every split;
leave a model that works by itself. A run can be stopped at any step and started again by the same
command; its state is committed before it ends.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from artclf.config import TRIAL_ID_DIGITS, Phase, TrainConfig, differences, identity, trial_id
from artclf.errors import ArtclfError, DivergedError, HungError, Interrupted, ResumeError, StorageError
from artclf.interrupt import StopRequest
from artclf.quiet import load_tensorflow
from artclf.records import Dataset
from artclf.rundir import RunDir, RunStatus, now, read_json, write_json
from artclf.storage import atomic_file
from artclf.watchdog import LEAST_S, Watchdog, dump_stacks, leave_at_once

if TYPE_CHECKING:
    from artclf.checkpoint import Arrays, Generation
    from artclf.classes import ClassChoice
    from artclf.data import Batches
    from artclf.learner import Learner
    from artclf.saver import Snapshot

log = logging.getLogger("artclf")


@dataclass(frozen=True)
class Options:
    """How a run is carried out; nothing here changes its result.

    Attributes:
        threads: that decode; None means one a core, eight at most.
        from_zero: begin again, also where a run is done; what was committed before is set aside.
        hang_after_s: the least time without a finished step that is called a hang.
    """

    threads: int | None = None
    from_zero: bool = False
    hang_after_s: float = LEAST_S


class Place(NamedTuple):
    """A moment of a training."""

    phase: int
    phase_epoch: int
    epoch: int
    step: int


@dataclass
class TrainState:
    """Where a run stands: all of it that is not an array.

    Attributes:
        phase: place of the current phase; as many as there are phases when training is over.
        phase_epoch: finished epochs of this phase.
        epoch: finished epochs in all.
        step: finished steps of the epoch under way.
        sums: the running sums of the epoch under way (learner.SUMS).
        train_seconds: time spent in the steps of the epoch under way.
        seconds: time spent in the run before this process.
        history: the lines of metrics.jsonl.
        best_epoch, best_value: where early_stopping.metric was best so far.
        waited: epochs of this phase since it last was.
        plateau_best, plateau_waited, plateau_scale: of the plateau schedule, this phase.
    """

    phase: int = 0
    phase_epoch: int = 0
    epoch: int = 0
    step: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0] * 4)
    train_seconds: float = 0.0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    best_value: float | None = None
    waited: int = 0
    plateau_best: float | None = None
    plateau_waited: int = 0
    plateau_scale: float = 1.0

    def place(self) -> Place:
        """Returns which moment of the training this is the state of."""
        return Place(self.phase, self.phase_epoch, self.epoch, self.step)

    def begin_epoch(self) -> None:
        """Forgets the epoch that ended."""
        self.step, self.sums, self.train_seconds = 0, [0.0] * 4, 0.0

    def begin_phase(self, phase: int) -> None:
        """Moves to a phase with fresh counters; the best epoch so far stays the best."""
        self.phase, self.phase_epoch, self.waited = phase, 0, 0
        self.plateau_best, self.plateau_waited, self.plateau_scale = None, 0, 1.0


class Training:
    """One run under way.

    Args:
        run: its directory, locked by the caller.
        dataset: its data.
        config: its settings.
        stop: tells when to commit and leave.
        status: what status.json says of this attempt; written again after each commit.
        options: how it is carried out; changes no result.
    """

    def __init__(
        self,
        run: RunDir,
        dataset: Dataset,
        config: TrainConfig,
        stop: StopRequest,
        status: RunStatus,
        options: Options,
    ) -> None:
        from artclf.checkpoint import Checkpoints, LocalGenerations
        from artclf.classes import choose_classes, class_weights
        from artclf.data import Batches
        from artclf.learner import Learner
        from artclf.saver import Saver

        self.run, self.dataset, self.config, self.stop, self.options = run, dataset, config, stop, options
        self.classes: ClassChoice = choose_classes(dataset, config.data)
        splits = {name: self.classes.split(dataset, name) for name in ("train", "val", "test")}
        weights = class_weights(splits["train"].labels, len(self.classes.infos), config.train.class_weight)
        self.splits = splits
        self.batches = Batches(dataset, splits["train"], config.data, config.train.batch_size, options.threads)
        self.evaluation_batches: dict[str, Batches] = {
            name: Batches(dataset, splits[name], config.data, config.evaluate.batch_size, options.threads)
            for name in ("val", "test")
        }
        self.learner: Learner = Learner(config, len(self.classes.infos), weights)
        self.watchdog = Watchdog(self._hung, options.hang_after_s)
        self.checkpoints = Checkpoints(LocalGenerations(run.checkpoints), self.watchdog.beat)
        self.saver = Saver(self.checkpoints, self._committed)
        self.state = TrainState()
        self.best: Arrays = {}
        self.phases = config.phases()
        self.status = status
        # Once, not at each commit: a file of weights, which its content names, may be gone by then.
        self.identity = identity(config, dataset.digest)
        self._clock = self._saved_at = time.monotonic()
        self._saved: Place | None = None
        self._ticked = 0.0
        self._hangs = False

    # -- the loop --------------------------------------------------------------------------------

    def fit(self) -> None:
        """Trains from where the run stands to its end, and returns when the last epoch is committed.

        Raises:
            Interrupted: when asked to stop, after a commit.
            DivergedError: when the loss is not finite; nothing after the last commit is kept.
            StorageError: when a commit was refused; the one before it is sound.
        """
        self.watchdog.start()
        while self.state.phase < len(self.phases):
            phase = self.phases[self.state.phase]
            while not self._is_over(phase):
                self.learner.set_learning_rate(self.learning_rate(phase))
                self._train_epoch()
                validation = self._validate()
                self._finish_epoch(phase, validation)
                self._log_epoch()
                if self._is_due(self.config.train.checkpoint_every.epochs) or self._is_over(phase):
                    self._save()
            self._next_phase()
        self.saver.flush()

    def _train_epoch(self) -> None:
        self.learner.set_sums(self.state.sums)
        steps = self.batches.steps()
        first = self.state.epoch * steps
        started = time.monotonic() - self.state.train_seconds
        for batch in self.batches.epoch(self.config.train.seed, self.state.epoch, self.state.step):
            self.learner.step(batch, first + self.state.step)
            self.state.step += 1
            self.state.train_seconds = time.monotonic() - started
            self._tick(steps)
            self._between_steps()
            if self.state.step < steps and self._is_due():
                self._save()
        self.state.sums = self.learner.sums().tolist()

    def _validate(self) -> dict[str, float]:
        from artclf.evaluate import score

        probabilities, labels = self.learner.probabilities(
            self.evaluation_batches["val"].evaluation(), self._between_steps
        )
        scores = score(labels, probabilities, self._slugs())
        if not math.isfinite(scores.loss):
            raise DivergedError("the validation loss is not finite. Try a smaller train.learning_rate.")
        return {
            "val_loss": scores.loss,
            "val_accuracy": scores.accuracy,
            "val_top5_accuracy": scores.top5_accuracy,
        }

    def _finish_epoch(self, phase: Phase, validation: Mapping[str, float]) -> None:
        """Records the epoch, notes whether it is the best, and advances the counters that decide what follows."""
        state = self.state
        loss, hits, hits5, count = state.sums
        state.epoch += 1
        state.phase_epoch += 1
        state.history.append(
            {
                "epoch": state.epoch,
                "phase": state.phase + 1,
                "learning_rate": self.learning_rate(phase, state.phase_epoch - 1),
                "seconds": round(state.train_seconds, 3),
                "images_per_second": round(count / max(state.train_seconds, 1e-9), 2),
                "loss": loss / count,
                "accuracy": hits / count,
                "top5_accuracy": hits5 / count,
                **validation,
            }
        )
        stopping = self.config.train.early_stopping
        value = validation[stopping.metric]
        sign = -1 if stopping.metric.endswith("loss") else 1
        if state.best_value is None or sign * value > sign * state.best_value:
            state.best_epoch, state.best_value, state.waited = state.epoch, value, 0
            self.best = self.learner.weight_arrays()
        else:
            state.waited += 1
        self._watch_plateau(phase, validation["val_loss"])
        state.begin_epoch()

    def _watch_plateau(self, phase: Phase, value: float) -> None:
        state, settings = self.state, self.config.train.plateau
        if phase.schedule != "plateau":
            return
        if state.plateau_best is None or value < state.plateau_best:
            state.plateau_best, state.plateau_waited = value, 0
            return
        state.plateau_waited += 1
        if state.plateau_waited >= settings.patience:
            state.plateau_scale *= settings.factor
            state.plateau_waited = 0

    def learning_rate(self, phase: Phase, phase_epoch: int | None = None) -> float:
        """Returns the rate of an epoch of a phase (the one that comes next, if none is given)."""
        epoch = self.state.phase_epoch if phase_epoch is None else phase_epoch
        rate = phase.learning_rate or self.config.train.learning_rate
        if phase.schedule == "cosine":  # Loshchilov and Hutter, SGDR, arXiv 1608.03983, equation 5, one period
            return rate * 0.5 * (1 + math.cos(math.pi * epoch / phase.epochs))
        if phase.schedule == "steps":
            return float(rate * self.config.train.steps.factor ** (epoch // self.config.train.steps.every))
        if phase.schedule == "plateau":
            return max(rate * self.state.plateau_scale, self.config.train.plateau.min_learning_rate)
        return rate

    def _is_over(self, phase: Phase) -> bool:
        return self.state.phase_epoch >= phase.epochs or self._waited_enough()

    def _waited_enough(self) -> bool:
        patience = self.config.train.early_stopping.patience
        return patience is not None and self.state.waited >= patience

    def _next_phase(self) -> None:
        if self._waited_enough():
            log.info("no better epoch in %d: phase %d ends early", self.state.waited, self.state.phase + 1)
        self.state.begin_phase(self.state.phase + 1)
        if self.state.phase < len(self.phases):
            self.learner.begin_phase(self.phases[self.state.phase])

    # -- stopping and going on -------------------------------------------------------------------

    def restore(self) -> None:
        """Goes on from the newest sound committed state; from zero only if there never was one, or if told so.

        Raises:
            ResumeError: if there are committed states but none is sound, or it is of another run.
        """
        try:
            generation, damaged = self.checkpoints.restore()
            if generation is None:
                self._refuse_lost_states()
        except ResumeError as error:
            raise ResumeError(
                f"{error} To begin again from the first epoch: "
                f"python -m artclf.train --run-dir {self.run.path} --from-zero"
            ) from error
        for problem in damaged:
            log.warning("a committed state is damaged and set aside, an older one is used: %s", problem)
        if generation is None:
            self.learner.begin_phase(self.phases[0])
        else:
            self._adopt(generation)
            log.info("going on %s", self._where())
        if generation is not None or self.run.metrics.exists():
            self.run.write_metrics(self.state.history)

    def _refuse_lost_states(self) -> None:
        try:
            told = len(self.run.read_metrics())
        except StorageError:  # damaged: the epochs it held cannot be counted
            told = 1
        if epochs := max(self.status.epoch, told):
            raise ResumeError(
                f"{self.run.checkpoints}: no committed state is left, but status.json or metrics.jsonl tell of "
                f"{epochs} epochs."
            )

    def _adopt(self, generation: Generation) -> None:
        before = generation.state["of"]
        if before["trial"] != self.identity["trial"]:
            raise ResumeError(
                f"{self.run.checkpoints}: the committed state belongs to other settings or data: "
                f"{'; '.join(differences(before['settings'], self.identity['settings']))}. Use another run directory."
            )
        self.state = TrainState(**generation.state["place"])
        self.learner.restore_weights(generation.arrays["weights"])
        self.best = generation.arrays["best"]
        if self.state.phase < len(self.phases):
            self.learner.begin_phase(self.phases[self.state.phase])
            self.learner.restore_optimizer(generation.arrays["optimizer"])
        self._saved = self.state.place()
        self.status = replace(self.status, epoch=self.state.epoch)
        versions = {**generation.state["versions"]}
        if versions != self.learner.versions():
            log.warning("saved by %s, going on with %s: the last digits may differ", versions, self.learner.versions())

    def _is_due(self, epochs: int | None = None) -> bool:
        """Says whether so many epochs, or the time between two commits, have passed since the last one."""
        minutes = self.config.train.checkpoint_every.minutes
        if minutes is not None and time.monotonic() - self._saved_at >= minutes * 60:
            return True
        return epochs is not None and self.state.epoch - (self._saved.epoch if self._saved else 0) >= epochs

    def _save(self) -> None:
        """Hands a copy of the whole state to the saver; what is on disk then is enough to go on from here."""
        self._hand_over(self._snapshot())

    def _hand_over(self, snapshot: Snapshot) -> None:
        self.run.check_lock()
        self.saver.save(snapshot)
        self._saved, self._saved_at = self.state.place(), time.monotonic()

    def _snapshot(self) -> Snapshot:
        from artclf.saver import Snapshot

        if self.state.step:
            self.state.sums = self.learner.sums().tolist()
        just_best = self.state.step == 0 and 0 < self.state.best_epoch == self.state.epoch
        return Snapshot(
            {
                "of": self.identity,
                "versions": self.learner.versions(),
                "place": {**asdict(self.state), "seconds": self.seconds()},
            },
            {
                "weights": self.best if just_best else self.learner.weight_arrays(),
                "optimizer": self.learner.optimizer_arrays(),
                "best": self.best,
            },
        )

    def _committed(self, state: Mapping[str, Any]) -> None:
        """Tells of a commit in the files that point to it; called in the saver's thread."""
        if self._hangs:  # the watchdog has spoken the last word
            return
        place = state["place"]
        self.run.write_metrics(place["history"])
        self.status = replace(self.status, epoch=place["epoch"], seconds=round(place["seconds"], 1))
        self.run.write_status(self.status)

    def seconds(self) -> float:
        """Returns the time spent in this run, earlier processes too."""
        return self.state.seconds + time.monotonic() - self._clock

    def _between_steps(self) -> None:
        """Looks around after a step or a batch: did a commit fail, does anyone want us to stop?"""
        self.watchdog.beat()
        self.saver.check()
        if self.stop.requested:
            self._leave()

    def _leave(self) -> None:
        """Commits what is new, if there is time for it, and ends."""
        at = f"stopped by {self.stop.reason} {self._where()}"
        if self.state.phase < len(self.phases) and self.state.place() != self._saved:
            snapshot, left = self._snapshot(), self.stop.seconds_left()
            needed = self.saver.seconds_until_committed(snapshot)
            if left is not None and needed > left:
                self.saver.give_up_waiting()
                raise Interrupted(
                    f"{at}; a commit takes {needed:.0f} s and only {max(left, 0):.0f} s were left, so the last one "
                    f"before it stands. Start again and it goes on from there."
                )
            self._hand_over(snapshot)
        self.saver.flush()
        raise Interrupted(f"{at}; all is saved. Start again and it goes on.")

    def close(self) -> RunStatus:
        """Ends the threads, after what was handed over is committed, and returns the status so far."""
        self.saver.close()
        self.watchdog.close()
        return replace(self.status, seconds=round(self.seconds(), 1))

    def _hung(self, silent_s: float) -> None:
        """Leaves every thread's stack and ends this process; what else it could do may hang as well."""
        self._hangs = True
        reason = f"no step ended for {silent_s:.0f} s; the stacks of all threads are in {self.run.log}"
        leave_at_once(
            HungError(reason),
            [
                lambda: dump_stacks(self.run.log),
                lambda: self.run.write_status(replace(self.status, state="failed", reason=reason, ended=now())),
            ],
        )

    # -- what people see -------------------------------------------------------------------------

    def _tick(self, steps: int) -> None:
        """Writes progress.json about once a second, and looks whether the loss is still finite."""
        moment = time.monotonic()
        if moment - self._ticked < 1 and self.state.step < steps:
            return
        self._ticked = moment
        _, hits, _, count = self.learner.sums()
        done = self.state.epoch * steps + self.state.step
        total = self.config.total_epochs() * steps
        rate = self.state.step / max(self.state.train_seconds, 1e-9)
        progress = {
            "epoch": self.state.epoch,
            "epochs": self.config.total_epochs(),
            "step": self.state.step,
            "steps": steps,
            "accuracy": hits / max(count, 1),
            "seconds_left": round((total - done) / rate, 1),
        }
        # Lost in a power cut without harm, so it is renamed into place but not forced to the disk.
        temporary = self.run.path / ".tmp-progress.json"
        with contextlib.suppress(OSError):  # nor may it end a run
            temporary.write_text(json.dumps(progress))
            os.replace(temporary, self.run.progress)

    def _where(self) -> str:
        """Returns the place of the training in words."""
        state, epochs = self.state, self.config.total_epochs()
        if state.step:
            return f"in epoch {state.epoch + 1} of {epochs}, after step {state.step} of {self.batches.steps()}"
        return f"after epoch {state.epoch} of {epochs}" if state.epoch else "at the beginning"

    def _log_epoch(self) -> None:
        """Logs an epoch on a line that fits a terminal; metrics.jsonl has the other figures."""
        line = self.state.history[-1]
        log.info(
            "epoch %d/%d  loss %.4f (val %.4f)  accuracy %.4f (val %.4f)  %.1f s",
            line["epoch"],
            self.config.total_epochs(),
            line["loss"],
            line["val_loss"],
            line["accuracy"],
            line["val_accuracy"],
            line["seconds"],
        )

    # -- the end ---------------------------------------------------------------------------------

    def finish(self) -> None:
        """Evaluates the kept weights on val and test and saves the model, everything in one step each."""
        from artclf.evaluate import score, write_predictions

        if self.config.train.early_stopping.restore_best:
            self.learner.restore_weights(self.best)
        for split, batches in self.evaluation_batches.items():
            probabilities, labels = self.learner.probabilities(batches.evaluation(), self._between_steps)
            scores = score(labels, probabilities, self._slugs())
            write_json(self.run.evaluation_json(split), scores.to_dict())
            records = self.splits[split].records
            names = self.dataset.names(records)
            write_predictions(self.run.predictions_csv(split), records, names, labels, probabilities, self._slugs())
            log.info(
                "%s: %d pictures  accuracy %.4f  top5 %.4f  macro F1 %.4f",
                split,
                scores.count,
                scores.accuracy,
                scores.top5_accuracy,
                scores.macro_f1,
            )
        self._save_model()

    def _save_model(self) -> None:
        model = self.learner.network.model
        with atomic_file(self.run.model, size_bytes=4 * model.count_params()) as temporary:
            model.save(temporary)
        data = self.config.data
        write_json(
            self.run.model_json,
            {
                "format": "artclf-model/1",
                "model": self.config.model.name,
                "parameters": int(model.count_params()),
                "classes": [asdict(info) for info in self.classes.infos],
                "preprocessing": {
                    "view": data.view,
                    "image_size": data.image_size,
                    "crops": data.crops,
                    "colour": data.colour,
                },
                "data_digest": self.dataset.digest,
                "trial_id": self.identity["trial"][:TRIAL_ID_DIGITS],
                "best_epoch": self.state.best_epoch,
                "settings": self.config.model_dump(mode="json"),
            },
        )

    def _slugs(self) -> list[str]:
        return [info.slug for info in self.classes.infos]


def train(run: RunDir, dataset: Dataset, config: TrainConfig, stop: StopRequest, options: Options = Options()) -> None:
    """Brings one run to its end from wherever it stands, and leaves its verdict in status.json.

    Raises:
        Interrupted: after a commit, when ``stop`` was requested.
        ArtclfError: what went wrong; the status says it too.
    """
    if options.from_zero:
        _forget(run)
    before = _status_before(run)
    if before is not None and before.state == "done" and run.is_complete():
        _refuse_other_model(run, dataset, config)
        log.info("%s: done already, %s", run.path, f"{before.epoch} epochs")
        return
    attempt = before.attempt + 1 if before else 1
    status = replace(
        before or RunStatus("running", started=now()), state="running", reason="", attempt=attempt, ended=""
    )
    run.write_status(status)
    training: Training | None = None
    try:
        stop.check()
        log.info("loading TensorFlow")
        load_tensorflow()
        from artclf.environment import describe_environment

        stop.check()
        write_json(run.environment, describe_environment(dataset))
        training = Training(run, dataset, config, stop, status, options)
        _log_plan(training)
        _carry_out(training)
        verdict = replace(status, state="done")
    except BaseException as error:
        verdict = replace(status, state=_state_after(error), reason=_reason(error))
        raise
    finally:
        if training is not None:
            so_far = training.close()
            verdict = replace(verdict, epoch=so_far.epoch, seconds=so_far.seconds)
        _leave_verdict(run, replace(verdict, ended=now()))
    log.info("done in %.0f s: %s", verdict.seconds, run.path)


def _forget(run: RunDir) -> None:
    """Makes a run one that never began, at once and before anything slow; its commits are kept aside."""
    aside = run.set_checkpoints_aside()
    run.write_metrics([])
    before = _status_before(run) or RunStatus("interrupted", started=now())
    run.write_status(replace(before, state="interrupted", reason="told to begin from zero", epoch=0, seconds=0.0))
    log.info("beginning from zero as told%s", f"; what was committed is kept in {aside}" if aside else "")


def _refuse_other_model(run: RunDir, dataset: Dataset, config: TrainConfig) -> None:
    """Raises ResumeError if a finished run's settings were changed since: they did not make its model."""
    model = read_json(run.model_json)
    if model.get("trial_id") != trial_id(config, dataset.digest):
        before = TrainConfig.from_settings(model.get("settings", {}), str(run.model_json)).flat()
        changed = "; ".join(differences(before, config.flat())) or "the data set is another"
        raise ResumeError(f"{run.path}: done, but not with these settings: {changed}. Use another run directory.")


def _carry_out(training: Training) -> None:
    try:
        training.restore()
        training.fit()
        training.finish()
    except StorageError as error:
        raise StorageError(
            f"{error} {training.status.epoch} epochs are committed: when that is mended, start again and it goes on."
        ) from error


def _leave_verdict(run: RunDir, verdict: RunStatus) -> None:
    """Writes the verdict; a disk that refuses it too must not hide what ended the run."""
    try:
        run.write_status(verdict)
    except StorageError as error:
        if verdict.state == "done":
            raise
        log.warning("%s", error)


def _status_before(run: RunDir) -> RunStatus | None:
    try:
        return run.read_status()
    except StorageError as error:  # the committed states, not this file, tell where to go on
        log.warning("%s It is written anew.", error)
        return None


def _state_after(error: BaseException) -> Any:
    if isinstance(error, Interrupted | KeyboardInterrupt):
        return "interrupted"
    return "diverged" if isinstance(error, DivergedError) else "failed"


def _reason(error: BaseException) -> str:
    return str(error) if isinstance(error, ArtclfError) else f"{type(error).__name__}: {error}"


def _log_plan(training: Training) -> None:
    config, network = training.config, training.learner.network
    if network.backbone is not None and config.model.weights == "none":
        log.info("model.weights is none: %s begins with random weights and learns slowly", config.model.name)
    log.info(
        "%s, %s parameters, %d epochs of %d steps",
        config.model.name,
        f"{network.model.count_params():,}",
        config.total_epochs(),
        training.batches.steps(),
    )
    pictures = ", ".join(f"{len(split):,} {name}" for name, split in training.splits.items())
    log.info("%s pictures of %d classes", pictures, len(training.classes.infos))
