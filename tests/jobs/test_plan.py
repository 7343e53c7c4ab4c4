"""What a submit decides, over values alone."""

from __future__ import annotations

import pytest

from artclf.config import TrainConfig
from artclf.rundir import STATES, RunStatus
from jobs.grid import Trial
from jobs.plan import plan
from jobs.spec import JobState, Outcome, outcome

TRIAL = Trial("0a1b2c3d", "seed=1", {"train.seed": 1}, TrainConfig.from_settings({"train.epochs": 20}))


@pytest.mark.parametrize(
    ("result", "action", "why"),
    [
        (Outcome("missing"), "start", "new"),
        (Outcome("done", epoch=20), "skip", "done"),
        (Outcome("running", epoch=3), "wait", "running already"),
        (Outcome("interrupted", "stopped", 6), "continue", "from epoch 6 of 20: was interrupted"),
        (Outcome("failed", "no space", 4), "continue", "from epoch 4 of 20: no space"),
        (Outcome("failed", "its job ended before the run began"), "retry", "its job ended before the run began"),
        (Outcome("diverged", "loss", 2), "skip", "diverged; the same settings would diverge again"),
    ],
)
def test_each_outcome_leads_to_one_action_with_its_reason(result: Outcome, action: str, why: str) -> None:
    (step,) = plan([TRIAL], {TRIAL.trial_id: result})
    assert (step.action, step.why) == (action, why)
    assert step.launches == (action in ("start", "continue", "retry"))


@pytest.mark.parametrize("job", [None, *JobState])
@pytest.mark.parametrize("state", [None, *STATES])
def test_every_pair_of_job_state_and_run_state_has_an_outcome(job: JobState | None, state: str | None) -> None:
    run = RunStatus(state, epoch=3) if state else None  # type: ignore[arg-type]
    result = outcome(job, run)
    assert result.state in ("missing", "running", "done", "failed", "interrupted", "diverged")
    if state == "done":
        assert result.state == "done"


def test_a_machine_that_is_gone_without_a_verdict_is_a_failure_that_says_so() -> None:
    result = outcome(JobState.STOPPED, RunStatus("running", epoch=6))
    assert result.state == "failed"
    assert "without a verdict after epoch 6" in result.reason


def test_the_word_of_a_run_that_is_started_again_does_not_count_while_its_job_lives() -> None:
    assert outcome(JobState.PENDING, RunStatus("failed", "earlier")).state == "running"
