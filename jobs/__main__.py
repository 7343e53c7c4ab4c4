"""``python -m jobs plan|submit|status|logs|stop|report|reap|drill GRID``: arguments, printing, exit codes."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from artclf.command_line import positive, run_command
from artclf.errors import ConfigError, Interrupted, StorageError
from jobs.cells import counted

if TYPE_CHECKING:
    from artclf.records import Dataset
    from jobs.grid import Expansion, Grid, Trial
    from jobs.plan import Step
    from jobs.spec import Backend, Outcome
    from jobs.study import Study

T = TypeVar("T")
ACTIONS = {"start": "start", "retry": "start again", "wait": "running"}


@dataclass(frozen=True)
class Opened:
    """All that a command works on: the grid, its trials, and where they stand."""

    grid: Grid
    dataset: Dataset
    expansion: Expansion
    study: Study
    backend: Backend
    outcomes: dict[str, Outcome]

    @property
    def trials(self) -> tuple[Trial, ...]:
        """The grid's trials."""
        return self.expansion.trials


def open_all(arguments: argparse.Namespace, check_stop: Callable[[], None] = lambda: None) -> Opened:
    """Reads the grid, opens (or first prepares) its data set, and looks how every trial stands."""
    from artclf.datasets import open_dataset
    from jobs.grid import expand, load_grid
    from jobs.submit import outcomes

    grid = load_grid(Path(arguments.grid))
    backend, study = _open_place(arguments, grid.study, check_stop)
    _look(study)
    dataset = open_dataset(grid.dataset, check_stop, ahead=False)
    expansion = expand(grid, dataset.digest)
    return Opened(grid, dataset, expansion, study, backend, outcomes(study, expansion.trials, backend))


@dataclass(frozen=True)
class Submitted:
    """A study as it was last submitted: whatever became of its data set or grid file since."""

    study: Study
    backend: Backend
    content: dict[str, Any]

    @property
    def trials(self) -> list[str]:
        """The ids of its trials."""
        return [trial["trial_id"] for trial in self.content["trials"]]

    def find(self, name: str) -> str:
        """Returns the id of the one trial whose id begins so. Raises ConfigError if there is not one."""
        found = [trial_id for trial_id in self.trials if trial_id.startswith(name)]
        if len(found) != 1:
            known = ", ".join(self.trials[:8])
            raise ConfigError(
                f"{name or 'TRIAL'}: expected the id of one trial of the grid (or its beginning): {known}."
            )
        return found[0]

    def running(self, trials: Iterable[str]) -> list[str]:
        """Returns those of some trials that a job is at work on."""
        jobs = self.study.last_jobs()
        handles = [jobs[trial_id] for trial_id in trials if trial_id in jobs]
        return [status.handle.trial_id for status in self.backend.status(handles) if status.state.alive]


def open_submitted(arguments: argparse.Namespace) -> Submitted:
    """Returns the study that a grid file names, as it was last submitted.

    Raises:
        ConfigError: if nothing was submitted yet.
    """
    from jobs.grid import load_grid

    backend, study = _open_place(arguments, load_grid(Path(arguments.grid)).study)
    _look(study)
    content = study.read()
    if content is None:
        raise ConfigError(f"{_shown(study)}: nothing was submitted yet. Start with: {_again(arguments)}")
    return Submitted(study, backend, content)


def _open_place(
    arguments: argparse.Namespace, name: str, check_stop: Callable[[], None] = lambda: None
) -> tuple[Backend, Study]:
    """Returns the backend and the study's place, which must fit each other: jobs elsewhere reach only a bucket.

    Raises:
        ConfigError: if one of them cannot be used.
    """
    from artclf.storage import is_in_bucket
    from jobs.backends import open_backend
    from jobs.settings import load_cloud_settings
    from jobs.study import open_study

    backend = open_backend(arguments.backend, check_stop)
    if not backend.is_remote:
        root = arguments.root or DEFAULT_ROOT
        if is_in_bucket(root):
            raise ConfigError(
                f"--root {root}: the backend {backend.name} works in a folder; a bucket needs --backend B."
            )
        return backend, open_study(root, name)
    settings = load_cloud_settings()
    root = arguments.root or settings.studies
    if not is_in_bucket(root):
        raise ConfigError(
            f"--root {root}: the backend {backend.name} needs s3://BUCKET/PREFIX, where its jobs can write."
        )
    return backend, open_study(root, name, settings.account, settings.region)


def _look(study: Study) -> None:
    """Brings what is known of a study up to date, and says what of it could not be read."""
    study.refresh()
    for problem in study.problems:
        print(f"warning: {problem}", file=sys.stderr)


# -- the commands --------------------------------------------------------------------------------


def plan_command(arguments: argparse.Namespace) -> int:
    """Shows what a submit would do; touches nothing but the data set's cache."""
    opened = open_all(arguments)
    if opened.backend.is_remote:
        opened.backend.check()
    steps = _steps(opened)
    if arguments.json:
        requests = _requests(opened, steps) if arguments.requests else None
        print(json.dumps([_step_json(step, requests) for step in steps], indent=2))
        return 0
    _print_plan(opened, steps)
    if arguments.requests:
        print(json.dumps(list(_requests(opened, steps).values()), indent=2))
    return 0


def submit_command(arguments: argparse.Namespace) -> int:
    """Runs what is missing and writes the report; a repeat starts nothing that is done."""
    from artclf.interrupt import StopRequest
    from jobs.display import watcher
    from jobs.submit import Submission, outcomes

    if arguments.dry_run:
        return plan_command(arguments)
    end = _again(arguments).replace(" submit ", " stop ", 1)
    stop = StopRequest.on_signals(f"trials that run go on by themselves: submit again, or end them with {end}.")
    opened = open_all(arguments, stop.check)
    study, grid = opened.study, opened.grid
    asked_before = study.stops_asked()
    opened.backend.check()
    study.check()
    with study.submitting():
        opened = replace(opened, outcomes=outcomes(study, opened.trials, opened.backend))  # nobody else submits now
        study.check_data(opened.dataset.digest)
        _check_classes(opened)
        steps = _steps(opened)
        _print_plan(opened, steps)
        work = [step for step in steps if step.action != "skip"]
        _requests(opened, steps)  # refuses what could never be started, before anybody is asked
        if opened.backend.is_remote and any(step.launches for step in work):
            jobs = counted(sum(step.launches for step in work), "job")
            _ask(f"Start {jobs} on {opened.backend.name}?", yes=arguments.yes)
        data = study.share_dataset(opened.dataset, _say_at_once, stop.check)
        study.record(grid, data, opened.dataset.digest, opened.expansion)
        if work:
            parallel = arguments.max_parallel or grid.resources.max_parallel
            with watcher(study, len(work)) as shown:
                submission = Submission(study, grid, opened.backend, data, opened.dataset.digest, shown)
                ended = submission.run(steps, parallel, stop, asked_before)
            opened = replace(opened, outcomes={**opened.outcomes, **ended})
        else:
            print(f"Nothing to start: all {len(steps)} trials have ended.")
        if work or not _report_is_current(study):
            _write_report(study, opened.dataset, _again(arguments))
    return _submit_verdict(opened, stop.reason)


def status_command(arguments: argparse.Namespace) -> int:
    """Shows how every trial stands; with --watch again and again until all have ended."""
    while True:
        opened = open_all(arguments)
        if arguments.json:
            print(json.dumps([_status_json(opened, trial) for trial in opened.trials], indent=2))
            return 0
        if arguments.watch and sys.stdout.isatty():
            print("\033[2J\033[H", end="")
        _print_status(opened)
        if not arguments.watch or not any(o.state == "running" for o in opened.outcomes.values()):
            return 0
        sys.stdout.flush()
        time.sleep(max(2, opened.backend.poll_s))


def logs_command(arguments: argparse.Namespace) -> int:
    """Prints a trial's log; with --follow until its job ends."""
    submitted = open_submitted(arguments)
    if len(arguments.trials) > 1:
        raise ConfigError(f"expected one trial, received {len(arguments.trials)}: {' '.join(arguments.trials)}.")
    trial_id = submitted.find(*arguments.trials or [""])
    run, job = submitted.study.run(trial_id), submitted.study.last_jobs().get(trial_id)
    if job is None or (submitted.backend.is_remote and not job.remote_id):
        print(f"{trial_id}: not started yet; there is no log.", file=sys.stderr)
        return 0
    place = 0
    while True:
        running = submitted.running([trial_id])
        if run.log.exists():
            with open(run.log, encoding="utf-8", errors="replace") as lines:
                lines.seek(place)
                sys.stdout.write(lines.read())
                place = lines.tell()
            sys.stdout.flush()
        if not (arguments.follow and running):
            break
        time.sleep(submitted.backend.poll_s)
        submitted.study.refresh()
    status = _readable(run.read_status)
    if place == 0 or (status is not None and status.state == "failed"):
        print(f"-- what its {'job has printed so far' if running else 'last job printed'}:")
        printed = list(submitted.backend.logs(job))
        print("\n".join(printed) if printed else "(nothing)")
    return 0


def stop_command(arguments: argparse.Namespace) -> int:
    """Lets running trials save and end: those named, or all (then the submitter launches no more either)."""
    try:
        submitted = open_submitted(arguments)
    except StorageError as error:
        if arguments.trials:
            raise
        from jobs.grid import load_grid

        print(f"warning: {error}", file=sys.stderr)  # what runs costs money, and its jobs are known all the same
        backend, study = _open_place(arguments, load_grid(Path(arguments.grid)).study)
        submitted = Submitted(study, backend, {"trials": []})
    study = submitted.study
    chosen = [submitted.find(name) for name in arguments.trials]
    study.ask_to_stop(chosen)  # before we look: a submitter stops by itself what it starts from now on
    _look(study)
    jobs = study.last_jobs()
    running = submitted.running(chosen or list(jobs))
    submitter = study.submitter()
    if submitter is not None and not chosen:
        with contextlib.suppress(ProcessLookupError):  # it hands the stop on to its trials
            os.kill(submitter, signal.SIGTERM)
    elif not running:
        print("Nothing is running.")
        return 0
    else:
        for trial_id in running:
            submitted.backend.stop(jobs[trial_id])
    print(f"Asked {counted(len(running), 'running trial')} to save and end; waiting for them.", flush=True)
    while submitted.running(running):
        time.sleep(submitted.backend.poll_s)
    study.refresh()
    for trial_id in running:
        status = _readable(study.run(trial_id).read_status)
        saved = counted(status.epoch if status else 0, "epoch")
        print(f"{trial_id}: {status.state if status else 'not begun'}, {saved} saved")
    print(f"Go on with: {_again(arguments)}")
    return 0


def report_command(arguments: argparse.Namespace) -> int:
    """Gathers what is there and writes results.csv, report.md, report.html and best/."""
    submitted = open_submitted(arguments)
    if _has_changed(arguments, submitted):
        print(f"note: {arguments.grid} has changed since; this is a report of the grid as it was last submitted")
    _write_report(submitted.study, _dataset_of(submitted), _again(arguments))
    print(f"Report: {_shown_path(submitted.study.path / 'report.html')}")
    return 0


def _has_changed(arguments: argparse.Namespace, submitted: Submitted) -> bool:
    """Says whether a grid file now names other trials than when it was submitted; one that cannot be read does not."""
    from jobs.grid import expand, load_grid

    with contextlib.suppress(ConfigError):
        now = expand(load_grid(Path(arguments.grid)), submitted.content["data_digest"]).trials
        return {trial.trial_id for trial in now} != set(submitted.trials)
    return False


def _write_report(study: Study, dataset: Dataset | None, again: str) -> None:
    """Writes the report on this machine, and puts it to where the study is kept."""
    from jobs.report import WRITTEN, write_report

    write_report(study.path, dataset, study.fetch_model, again)
    study.publish(WRITTEN)


def _dataset_of(submitted: Submitted) -> Dataset | None:
    """Returns the data set of a study if it is still where it was; the report names pictures without it too."""
    from artclf.datasets import open_dataset
    from artclf.records import Dataset, is_dataset
    from artclf.storage import is_in_bucket

    uri = submitted.content["dataset"]
    if is_in_bucket(uri):
        with contextlib.suppress(ConfigError, StorageError):
            return open_dataset(uri, ahead=False)
        return None
    return Dataset.open(Path(uri)) if is_dataset(Path(uri)) else None


def reap_command(arguments: argparse.Namespace) -> int:
    """Lists what was left behind (unfinished runs of earlier grids, unfinished files, trainers without a
    submitter); removes it with --yes. Finished runs are never among it."""
    from jobs.display import table
    from jobs.reap import leftovers

    submitted = open_submitted(arguments)
    with submitted.study.submitting():
        found = leftovers(submitted.study, set(submitted.trials), submitted.backend)
        if not found:
            print("Nothing was left behind.")
            return 0
        sizes = ["" if item.size_mb is None else f"{item.size_mb:.1f} MB" for item in found]
        print(
            table(
                ["what", "size", "where"],
                [[i.what, s, _shown_place(i.where)] for i, s in zip(found, sizes, strict=True)],
                width=sys.maxsize,  # a place that is cut can be neither judged nor copied
            )
        )
        if not arguments.yes:
            print("Nothing was removed. Remove all of it with --yes.")
            return 0
        for item in found:
            item.remove()
    print(f"Removed {len(found)}.")
    return 0


def drill_command(arguments: argparse.Namespace) -> int:
    """Runs the grid undisturbed and disturbed, and says whether both left the same."""
    from artclf.interrupt import StopRequest
    from artclf.storage import local_path
    from jobs.drill import drill

    seed = arguments.seed or 1 + secrets.randbelow(99_999)
    stop = StopRequest.on_signals()
    try:
        verdict = drill(
            Path(arguments.grid),
            local_path(arguments.root or DEFAULT_ROOT),
            arguments.backend,
            arguments.faults,
            seed,
            stop,
            _say_at_once,
        )
    except Interrupted as interrupted:
        root = f" --root {arguments.root}" if arguments.root else ""
        again = f"python -m jobs drill {arguments.grid}{root} --faults {arguments.faults} --seed {seed}"
        raise Interrupted(f"{interrupted} What was run undisturbed is kept; go on with:\n{again}") from None
    print(verdict.text)
    return 0 if verdict.equal else 1


# -- shared by the commands ----------------------------------------------------------------------


def _steps(opened: Opened) -> list[Step]:
    from jobs.plan import plan

    return plan(opened.trials, opened.outcomes)


def _check_classes(opened: Opened) -> None:
    """Finds a choice of classes that this data set cannot fulfil before any trial starts."""
    from artclf.classes import choose_classes

    for trial in opened.trials:
        choose_classes(opened.dataset, trial.config.data)


def _report_is_current(study: Study) -> bool:
    """Whether the report is newer than every verdict and than the list of trials it should show."""
    report = study.path / "report.html"
    if not report.exists():
        return False
    written = report.stat().st_mtime_ns
    sources = [study.path / "study.json", *(study.path / "runs").glob("*/status.json")]
    return all(source.stat().st_mtime_ns < written for source in sources)


def _submit_verdict(opened: Opened, stop_reason: str) -> int:
    """Says how the grid stands after a submit, and returns the exit code that says so too."""
    from jobs.submit import jobs_go_on

    states = Counter(result.state for result in opened.outcomes.values())
    left = len(opened.trials) - states["done"] - states["diverged"]
    print(f"{_winner(opened.study)}Report: {_shown_path(opened.study.path / 'report.html')}")
    if stop_reason and left:
        what = "running jobs go on" if jobs_go_on(opened.backend, stop_reason) else "what ran is saved"
        raise Interrupted(f"stopped; {what}. Run the same submit again and it goes on.")
    if states["diverged"]:
        print(f"{states['diverged']} of {len(opened.trials)} trials diverged; the same settings would diverge again.")
    if left:
        print(f"{left} of {len(opened.trials)} trials did not finish; run the same submit again to go on with them.")
    return 1 if left or states["diverged"] else 0


def _winner(study: Study) -> str:
    """Returns a line about the best trial so far, or nothing."""
    from jobs.gather import gather, read_study, winner

    objective = read_study(study.path).objective
    best = winner(gather(study.path), objective)
    if best is None:
        return ""
    scores = {objective.metric: best.metrics[objective.metric], "test_accuracy": best.metrics.get("test_accuracy")}
    told = ", ".join(f"{name} {value:.4f}" for name, value in scores.items() if value is not None)
    return f"Best: {best.trial_id}  {best.label}  {told}\n"


def _print_plan(opened: Opened, steps: list[Step]) -> None:
    from jobs.display import table

    grid, dataset = opened.grid, opened.dataset
    counts = dataset.manifest["counts"]
    print(
        f"study {grid.study}: {counted(len(steps), 'trial')} on {counts['used']:,} pictures of "
        f"{len(dataset.classes)} classes, backend {opened.backend.name}"
    )
    for note in [*opened.expansion.notes, *opened.backend.notes(), *_cost_notes(opened, steps)]:
        print(f"note: {note}")
    print(table(["trial", "does", "settings"], [[s.trial.trial_id, _does(s), s.trial.label] for s in steps]))
    for step in steps:
        if step.action in ("continue", "retry") or step.word == "diverged":
            print(f"{step.trial.trial_id} {step.why}")
    others = set(opened.study.trial_ids()) - {trial.trial_id for trial in opened.trials}
    if others:
        are = "run of an earlier grid is" if len(others) == 1 else "runs of earlier grids are"
        print(f"{len(others)} {are} kept and not part of this one.")


def _cost_notes(opened: Opened, steps: list[Step]) -> list[str]:
    """Returns what bounds the cost of the jobs that would be started, and what does not."""
    grid, count = opened.grid, sum(step.launches for step in steps)
    if not opened.backend.is_remote or not count:
        return []
    asked, hours = grid.resources, grid.resources.max_hours
    jobs = counted(count, "spot job" if asked.spot else "on-demand job")
    notes = [
        f"{jobs} on {asked.instance}, {asked.max_parallel} at a time, {hours:g} h each at most: "
        f"{count * hours:g} h in all, and more for each that is started again"
    ]
    if grid.budget.max_usd is not None:
        notes.append("budget.max_usd is not watched yet; resources.max_hours bounds the cost")
    return notes


def _does(step: Step) -> str:
    """Returns what a submit does with a trial, short enough for a column."""
    if step.action == "continue":
        return f"continue at {step.epoch}/{step.trial.config.total_epochs()}"
    return f"skip: {step.word}" if step.action == "skip" else ACTIONS[step.action]


def _step_json(step: Step, requests: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "trial_id": step.trial.trial_id,
        "label": step.trial.label,
        "params": step.trial.params,
        "action": step.action,
        "why": step.why,
        **({} if requests is None else {"request": requests.get(step.trial.trial_id)}),
    }


def _requests(opened: Opened, steps: Iterable[Step]) -> dict[str, Any]:
    """Returns what is sent for each job that steps launch, by its trial's id.

    Raises:
        ConfigError: if one can never be started.
    """
    from jobs.submit import job_spec, next_attempt

    last = opened.study.last_jobs()

    def request(trial: Trial) -> dict[str, Any]:
        attempt = next_attempt(last.get(trial.trial_id), opened.backend)
        return opened.backend.request(job_spec(opened.study, opened.grid, trial, attempt))

    return {step.trial.trial_id: request(step.trial) for step in steps if step.launches}


def _status_json(opened: Opened, trial: Trial) -> dict[str, Any]:
    result = opened.outcomes[trial.trial_id]
    return {
        "trial_id": trial.trial_id,
        "label": trial.label,
        "params": trial.params,
        "state": result.state,
        "reason": result.reason,
        "epoch": result.epoch,
        "epochs": trial.config.total_epochs(),
    }


def _print_status(opened: Opened) -> None:
    from jobs.cells import duration
    from jobs.display import progress_of, table

    rows, spent = [], 0.0
    for trial in opened.trials:
        run, result = opened.study.run(trial.trial_id), opened.outcomes[trial.trial_id]
        status, metrics = _readable(run.read_status), _readable(run.read_metrics) or []
        spent += status.seconds if status else 0.0
        values = [line.get("val_accuracy") for line in metrics]
        best = max((value for value in values if isinstance(value, int | float)), default=None)
        left = progress_of(opened.study, trial).get("seconds_left") if result.state == "running" else None
        rows.append(
            [
                trial.trial_id,
                _state(result.state),
                f"{len(metrics)}/{trial.config.total_epochs()}",
                "" if best is None else f"{best:.4f}",
                "" if left is None else duration(left),
                trial.label,
            ]
        )
    states = Counter(result.state for result in opened.outcomes.values())
    words = "  ".join(f"{_state(name)} {count}" for name, count in sorted(states.items()) if name != "done")
    print(f"{opened.grid.study}: done {states['done']}/{len(rows)}  {words}  time spent {duration(spent)}")
    print(table(["trial", "state", "epoch", "best val", "left", "settings"], rows))
    for trial in opened.trials:
        result = opened.outcomes[trial.trial_id]
        if result.reason and result.state in ("failed", "diverged"):
            print(f"{trial.trial_id} {result.state}: {result.reason}")


def _state(state: str) -> str:
    return "to do" if state == "missing" else state


def _readable(read: Callable[[], T]) -> T | None:
    """Returns what a reader returns, or None where the file is damaged: the outcome tells that."""
    try:
        return read()
    except StorageError:
        return None


def _shown(study: Study) -> str:
    """Returns where a study is kept, as short as it can be said from here."""
    return study.uri if "://" in study.uri else _shown_path(study.path)


def _shown_path(path: Path) -> str:
    """Returns a path as short as it can be said from here."""
    relative = os.path.relpath(path)
    return relative if not relative.startswith("..") else str(path)


def _shown_place(where: str) -> str:
    return where if "://" in where else _shown_path(Path(where))


def _say_at_once(text: str) -> None:
    print(text, flush=True)


def _again(arguments: argparse.Namespace) -> str:
    backend = f" --backend {arguments.backend}" if arguments.backend != DEFAULT_BACKEND else ""
    root = f" --root {arguments.root}" if arguments.root else ""
    return f"python -m jobs submit {arguments.grid}{backend}{root}"


def _ask(question: str, *, yes: bool) -> None:
    """Asks before money is spent. Raises ConfigError if the answer is no, or nobody is there to give one."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError(f"{question} Nobody is there to answer; say --yes to start without being asked.")
    try:
        answer = input(f"{question} [y/N] ")
    except EOFError:  # Ctrl-D
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise ConfigError("nothing was started.")


# -- arguments -----------------------------------------------------------------------------------

DEFAULT_ROOT = "studies"
DEFAULT_BACKEND = "local"
COMMANDS = {
    "plan": (plan_command, "show what a submit would do with each trial; starts nothing"),
    "submit": (submit_command, "run every trial that is not done, then write the report"),
    "status": (status_command, "show how every trial stands"),
    "logs": (logs_command, "print a trial's log"),
    "stop": (stop_command, "let running trials save and end"),
    "report": (report_command, "gather what is there and write the report"),
    "reap": (reap_command, "list what was left behind; remove it with --yes"),
    "drill": (drill_command, "rehearse interruptions here and compare with an uninterrupted run"),
}


def main(argv: list[str]) -> int:
    """Runs ``python -m jobs``."""
    arguments = _parse(argv)
    code: int = COMMANDS[arguments.command][0](arguments)
    return code


def _parse(argv: list[str]) -> argparse.Namespace:
    """Returns the arguments; trials may stand behind options too, where argparse no longer takes them for such
    (Python issue 59317)."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if "trials" in arguments and not any(word.startswith("-") for word in rest):
        arguments.trials += rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jobs", description="Run a grid of training runs.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (_, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("grid", metavar="GRID.yaml")
        command.add_argument("--backend", default=DEFAULT_BACKEND, metavar="B", help="where jobs run (default: local)")
        command.add_argument(
            "--root",
            metavar="R",
            help="where studies lie, a folder or s3:// (default: studies, or cloud.yaml's bucket)",
        )
        _add_own_arguments(name, command)
    return parser


def _add_own_arguments(name: str, command: argparse.ArgumentParser) -> None:
    if name in ("plan", "submit", "status"):
        command.add_argument("--json", action="store_true", help="print JSON for scripts")
    if name in ("plan", "submit"):
        command.add_argument("--requests", action="store_true", help="also print the exact request of each start")
    if name == "submit":
        command.add_argument("--dry-run", action="store_true", help="the same as plan")
        command.add_argument("--max-parallel", type=positive, metavar="N", help="instead of the grid's max_parallel")
    if name == "submit":
        command.add_argument("--yes", action="store_true", help="ask no question")
    if name == "reap":
        command.add_argument("--yes", action="store_true", help="remove what is listed")
    if name == "status":
        command.add_argument("--watch", action="store_true", help="show again until all have ended")
    if name == "logs":
        command.add_argument("trials", metavar="TRIAL", nargs="*", help="its id, or the beginning of it")
        command.add_argument("--follow", action="store_true", help="go on until the job ends")
    if name == "stop":
        command.add_argument("trials", nargs="*", metavar="TRIAL")
    if name == "drill":
        command.add_argument("--faults", type=positive, default=8, metavar="N", help="how many (default: 8)")
        command.add_argument("--seed", type=positive, metavar="S", help="repeat the faults of the drill that told it")


if __name__ == "__main__":
    run_command(main)
