"""What a submit would do with each trial, and why. Pure: it decides over values and touches nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from jobs.grid import Trial
from jobs.spec import Outcome

Action = Literal["start", "continue", "retry", "wait", "skip"]


@dataclass(frozen=True)
class Step:
    """What happens to one trial.

    Attributes:
        action: start from zero; continue from a commit; retry what failed before its first commit;
            wait for a job that runs already; skip what needs nothing.
        why: the reason, for people.
        epoch: epochs that are saved.
        word: the trial's state in one word.
    """

    trial: Trial
    action: Action
    why: str
    epoch: int = 0
    word: str = ""

    @property
    def launches(self) -> bool:
        """Whether a new job is started for it."""
        return self.action in ("start", "continue", "retry")


def plan(trials: Sequence[Trial], outcomes: Mapping[str, Outcome]) -> list[Step]:
    """Returns a step for each trial, in their order.

    Args:
        trials: the grid's trials.
        outcomes: how each stands, by trial id.
    """
    found = [(trial, outcomes[trial.trial_id]) for trial in trials]
    return [
        Step(trial, *_decide(outcome, trial.config.total_epochs()), outcome.epoch, outcome.state)
        for trial, outcome in found
    ]


def _decide(outcome: Outcome, epochs: int) -> tuple[Action, str]:
    at = f"from epoch {outcome.epoch} of {epochs}"
    match outcome.state:
        case "done":
            return "skip", "done"
        case "diverged":
            return "skip", "diverged; the same settings would diverge again"
        case "running":
            return "wait", "running already"
        case "missing":
            return "start", "new"
        case "interrupted":
            return "continue", f"{at}: was interrupted"
        case _ if outcome.epoch:
            return "continue", f"{at}: {outcome.reason}"
        case _:
            return "retry", outcome.reason
