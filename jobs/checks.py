"""Results → what looks wrong with them. Pure: figures in, findings out.

Each check is one function below ``check``; a limit stands beside it as a constant with its reason.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, Literal

from artclf.evaluate import Evaluation
from jobs.gather import RunResult, SeedGroup, ranked, seed_groups, setting_text, settings_key
from jobs.grid import Objective

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")

FEW_TO_SCORE = 5
"""With fewer pictures of a class to score, one picture moves its recall by more than 20 points."""
FEW_TO_LEARN = 20
"""Below this a class is learnt by heart; the sources' worst class had 24 pictures in all (FEATURES.md, S2)."""
LARGE_GAP = 0.2
"""Train minus validation accuracy; S2's rows, called overfitted there, had 0.5 to 0.7."""
ROOM_ABOVE_VALIDATION = 0.05
"""How far test may stand above validation before it is asked about, if chance does not explain it."""
CHANCE_ERRORS = 2.0
"""Standard errors that chance explains: about 95 of 100 differences of equal models lie within."""
SHOWN = 6
"""Names listed before the rest is only counted."""


@dataclass(frozen=True)
class Finding:
    """One thing that looks wrong: an error makes figures worthless, a warning needs a look, a note is good to know.

    Attributes:
        detail: what was seen and what to do about it.
        trials: the trial_ids it is about; none if it is about all.
    """

    level: Level
    title: str
    detail: str
    trials: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Facts:
    results: Sequence[RunResult]
    objective: Objective
    manifest: Mapping[str, Any]
    done: list[RunResult] = field(default_factory=list)
    best: RunResult | None = None


def check(
    results: Sequence[RunResult], objective: Objective, manifest: Mapping[str, Any] | None = None
) -> list[Finding]:
    """Returns what looks wrong, the worst first.

    Args:
        results: one a trial, as gathered.
        objective: what the winner is chosen by.
        manifest: that of the data set, if it is at hand.
    """
    done = [r for r in results if r.state == "done"]
    best = next(iter(ranked(results, objective)), None)
    facts = _Facts(results, objective, manifest or {}, done, best)
    findings = [finding for check_one in _CHECKS for finding in check_one(facts)]
    return sorted(findings, key=lambda finding: LEVELS.index(finding.level))


# -- scores that cannot be right -----------------------------------------------------------------


def _validation_equals_test(facts: _Facts) -> Iterator[Finding]:
    both = [r for r in facts.done if "val_accuracy" in r.metrics and "test_accuracy" in r.metrics]
    equal = [r for r in both if _of_split(r, "val") == _of_split(r, "test")]
    if equal:
        yield Finding(
            "error",
            f"Validation equals test to the last digit in {len(equal)} of {len(both)} trials",
            f"{_names(equal)}: the same pictures were probably scored twice, or a column was copied. "
            "Do not trust these test figures.",
            _ids(equal),
        )


def _equal_scores(facts: _Facts) -> Iterator[Finding]:
    groups: dict[str, list[RunResult]] = {}
    for result in facts.done:
        scores = {**_of_split(result, "train", named=True), **_of_split(result, "val", named=True)}
        if "val_accuracy" in scores:
            groups.setdefault(settings_key(scores), []).append(result)
    for twins in groups.values():
        if len(twins) > 1 and len({settings_key(r.params) for r in twins}) > 1:
            yield Finding(
                "error",
                f"{len(twins)} trials have equal scores under different settings",
                f"{_names(twins)} agree in every train and validation figure although they differ in "
                f"{_differences(twins)}. Perhaps the setting had no effect, or one run was recorded twice.",
                _ids(twins),
            )


def _differences(twins: Sequence[RunResult]) -> str:
    names = dict.fromkeys(name for r in twins for name in r.params)
    words = []
    for name in names:
        values = dict.fromkeys(setting_text(r.params[name]) if name in r.params else "unset" for r in twins)
        if len(values) > 1:
            words.append(f"{name} ({', '.join(values)})")
    return " and ".join(words)


def _one_class_for_everything(facts: _Facts) -> Iterator[Finding]:
    stuck = [r for r in facts.done if any(_predicts_one_class(e) for e in r.evaluations.values())]
    if stuck:
        yield Finding(
            "error",
            f"All predictions fall into one class in {len(stuck)} of {len(facts.done)} trials",
            f"{_names(stuck)}: the network has not learnt to tell the classes apart. "
            "Try a lower learning rate, and look at its loss.",
            _ids(stuck),
        )


def _predicts_one_class(evaluation: Evaluation) -> bool:
    truths = sum(c.support > 0 for c in evaluation.per_class)
    predicted = sum(any(row[i] for row in evaluation.confusion) for i in range(len(evaluation.confusion)))
    return truths > 1 and predicted == 1


def _pictures_left_out(facts: _Facts) -> Iterator[Finding]:
    counts = {c["slug"]: c.get("counts") or {} for c in facts.manifest.get("classes", ())}
    if not counts or _other_data(facts):
        return
    short = []
    for result in facts.done:
        for split, evaluation in result.evaluations.items():
            expected = sum(counts.get(c.name, {}).get(split, 0) for c in evaluation.per_class)
            if evaluation.count != expected:
                short.append((result, f"{evaluation.count:,} of {expected:,} {split} pictures"))
    if short:
        results = list({r.trial_id: r for r, _ in short}.values())
        yield Finding(
            "error",
            f"{_count(results, 'trial was', 'trials were')} not scored on exactly their split",
            f"{_listed(f'{r.label}: {what}' for r, what in short)}. "
            "Every picture must count once; evaluate them again.",
            _ids(results),
        )


def _mixed_data(facts: _Facts) -> Iterator[Finding]:
    digests = Counter(d for r in facts.done if (d := r.environment.get("data_digest")))
    if len(digests) > 1:
        usual = digests.most_common(1)[0][0]
        others = [r for r in facts.done if r.environment.get("data_digest") not in (None, usual)]
        yield Finding(
            "error",
            f"{_count(others, 'trial was', 'trials were')} trained on another data set than the rest",
            f"{_names(others)}: their figures cannot be compared with the others'. Run them again on the same data.",
            _ids(others),
        )


def _other_data(facts: _Facts) -> bool:
    digest = facts.manifest.get("digest")
    trained = {d for r in facts.results if (d := r.environment.get("data_digest"))}
    return bool(digest and trained and digest not in trained)


def _data_set_at_hand_is_another(facts: _Facts) -> Iterator[Finding]:
    if _other_data(facts):
        yield Finding(
            "warning",
            "The data set at hand is not the one that was trained on",
            "Its digest differs, so its pictures and counts are left out of this report.",
        )


# -- how the winner is chosen --------------------------------------------------------------------


def _chosen_on_test(facts: _Facts) -> Iterator[Finding]:
    if facts.objective.metric.startswith("test_"):
        yield Finding(
            "error",
            "The winner is chosen on the test split",
            f"The objective is {facts.objective.metric}, so the winner's test figure is too good by choice. "
            "Choose on a validation metric, for example val_macro_f1.",
        )


def _no_test_split(facts: _Facts) -> Iterator[Finding]:
    without = [r for r in facts.done if "test_accuracy" not in r.metrics]
    if not without:
        return
    everyone = len(without) == len(facts.done)
    yield Finding(
        "warning",
        "There is no test split" if everyone else f"{_count(without, 'trial has', 'trials have')} no test figures",
        "The pictures that chose the winner also score it, so its figure is too good; read it as validation. "
        "Prepare the data with a test split."
        if everyone
        else f"{_names(without)}: only validation is known of them.",
        () if everyone else _ids(without),
    )


def _no_objective(facts: _Facts) -> Iterator[Finding]:
    if facts.done and facts.best is None:
        yield Finding(
            "error",
            "No finished trial has the metric that the winner is chosen by",
            f"The objective is {facts.objective.metric}. Name one that the runs record, for example val_accuracy.",
        )


def _within_the_noise(facts: _Facts) -> Iterator[Finding]:
    metric = facts.objective.metric
    groups = [g for g in seed_groups(facts.results) if g.spread(metric) is not None]
    if len(groups) < 2:
        return
    noise = _pooled_spread(groups, metric)
    means = [mean for g in groups if (mean := g.mean(metric)) is not None]
    difference = max(means) - min(means)
    if noise > 0 and difference < noise:
        yield Finding(
            "warning",
            "Seeds differ more than settings do",
            f"The same settings scatter by {noise:.4f} ({metric}, standard deviation over seeds), while the means of "
            f"the {len(groups)} settings lie within {difference:.4f}. No setting is shown to be better; add seeds.",
        )


def _pooled_spread(groups: Sequence[SeedGroup], metric: str) -> float:
    """Returns the root of the variances' mean, weighted by degrees of freedom."""
    weighted = [(len(v) - 1, statistics.variance(v)) for g in groups if len(v := g.values(metric)) > 1]
    return math.sqrt(sum(n * variance for n, variance in weighted) / sum(n for n, _ in weighted))


# -- how well it learnt --------------------------------------------------------------------------


def _gpus_without_work(facts: _Facts) -> Iterator[Finding]:
    paid = [
        r
        for r in facts.done
        if r.environment.get("instance") and r.environment.get("driver") and r.environment.get("gpus") == []
    ]
    if paid:
        machines = ", ".join(sorted({str(r.environment["instance"]) for r in paid}))
        yield Finding(
            "warning",
            f"{_count(paid, 'trial', 'trials')} trained without the GPU of a machine that has one",
            f"{_names(paid)}: on {machines} TensorFlow found no GPU. The image is probably the one for CPUs; build "
            "the other with TF_PACKAGE='tensorflow[and-cuda]' make image push.",
            _ids(paid),
        )


def _large_gap(facts: _Facts) -> Iterator[Finding]:
    wide = sorted((r for r in facts.done if r.metrics.get("gap", 0) > LARGE_GAP), key=lambda r: -r.metrics["gap"])
    if wide:
        listed = _listed(f"{r.label} (train {_percent(r, 'train')}, validation {_percent(r, 'val')})" for r in wide)
        yield Finding(
            "warning",
            f"Large gap between train and validation in {len(wide)} of {len(facts.done)} trials",
            f"{listed}. These networks learn their pictures by heart: try more dropout or L2, augmentation, "
            "a smaller head, or more pictures.",
            _ids(wide),
        )


def _test_above_validation(facts: _Facts) -> Iterator[Finding]:
    lucky = [r for r in facts.done if _stands_out(r)]
    if lucky:
        listed = _listed(f"{r.label} (validation {_percent(r, 'val')}, test {_percent(r, 'test')})" for r in lucky)
        yield Finding(
            "warning",
            f"Test is much better than validation in {len(lucky)} of {len(facts.done)} trials",
            f"{listed}. Chance hardly explains it: look for training pictures among the test pictures.",
            _ids(lucky),
        )


def _stands_out(result: RunResult) -> bool:
    val, test = result.metrics.get("val_accuracy"), result.metrics.get("test_accuracy")
    if val is None or test is None:
        return False
    error = 0.0
    if "val" in result.evaluations and "test" in result.evaluations:
        counts = [result.evaluations[split].count for split in ("val", "test")]
        pooled = (val * counts[0] + test * counts[1]) / sum(counts)
        error = math.sqrt(pooled * (1 - pooled) * sum(1 / n for n in counts))
    return test - val > max(ROOM_ABOVE_VALIDATION, CHANCE_ERRORS * error)


def _no_better_than_guessing(facts: _Facts) -> Iterator[Finding]:
    evaluation = facts.best.evaluations.get("val") if facts.best else None
    if facts.best is None or evaluation is None:
        return
    commonest = max(evaluation.per_class, key=lambda c: c.support)
    share = commonest.support / evaluation.count
    if evaluation.accuracy <= share:
        yield Finding(
            "error",
            "The winner is no better than always naming one class",
            f"It scores {evaluation.accuracy:.1%} on validation; saying {commonest.name!r} every time scores "
            f"{share:.1%}.",
            (facts.best.trial_id,),
        )


def _still_rising(facts: _Facts) -> Iterator[Finding]:
    best = facts.best
    if best is not None and best.epochs >= 3 and best.best_epoch == best.epochs:
        yield Finding(
            "note",
            "The winner was best in its last epoch",
            f"{best.label} may gain from more than {best.epochs} epochs.",
            (best.trial_id,),
        )


def _tiny_classes(facts: _Facts) -> Iterator[Finding]:
    small: dict[str, str] = {}
    for split, evaluation in facts.best.evaluations.items() if facts.best else ():
        for c in evaluation.per_class:
            if c.support < FEW_TO_SCORE:
                small.setdefault(c.name, f"{c.name} ({c.support} to {'test' if split == 'test' else 'validate'} on)")
    if not _other_data(facts):
        told_apart = {c.name for r in facts.done for evaluation in r.evaluations.values() for c in evaluation.per_class}
        for c in facts.manifest.get("classes", ()):
            if told_apart and c["slug"] not in told_apart:
                continue  # data.classes left it out of every trial
            train = (c.get("counts") or {}).get("train", FEW_TO_LEARN)
            if train < FEW_TO_LEARN:
                small.setdefault(c["slug"], f"{c['slug']} ({train} to learn from)")
    if small:
        yield Finding(
            "warning",
            f"{_count(small, 'class is', 'classes are')} tiny",
            f"{_listed(small.values())}. Their scores are mostly chance; collect more pictures or leave them out "
            "(data.classes).",
        )


# -- what did not end well -----------------------------------------------------------------------


def _unfinished(facts: _Facts) -> Iterator[Finding]:
    for state, (level, (one, many), advice) in _UNFINISHED.items():
        these = [r for r in facts.results if r.state == state]
        if these:
            words = one if len(these) == 1 else many
            title = f"{len(these)} of {len(facts.results)} trials {words}"
            yield Finding(level, title, f"{_names(these)}. {advice}", _ids(these))


_GO_ON = "Submit the same grid again: it starts only these."
_UNFINISHED: dict[str, tuple[Level, tuple[str, str], str]] = {
    "failed": ("error", ("failed", "failed"), f"The reasons stand below. {_GO_ON}"),
    "diverged": ("error", ("diverged", "diverged"), "Their loss was no longer a number: lower the learning rate."),
    "damaged": ("error", ("is damaged", "are damaged"), f"The reasons stand below. {_GO_ON}"),
    "missing": ("warning", ("is missing", "are missing"), _GO_ON),
    "interrupted": ("warning", ("was interrupted", "were interrupted"), _GO_ON),
    "running": ("note", ("is still running", "are still running"), "Their figures are those of the best epoch so far."),
}

_CHECKS: tuple[Callable[[_Facts], Iterator[Finding]], ...] = (
    _chosen_on_test,
    _no_objective,
    _validation_equals_test,
    _equal_scores,
    _mixed_data,
    _pictures_left_out,
    _one_class_for_everything,
    _no_better_than_guessing,
    _unfinished,
    _no_test_split,
    _data_set_at_hand_is_another,
    _within_the_noise,
    _gpus_without_work,
    _large_gap,
    _test_above_validation,
    _tiny_classes,
    _still_rising,
)


# -- words ---------------------------------------------------------------------------------------


def _of_split(result: RunResult, split: str, *, named: bool = False) -> dict[str, float]:
    prefix = f"{split}_"
    return {
        (name if named else name.removeprefix(prefix)): value
        for name, value in result.metrics.items()
        if name.startswith(prefix)
    }


def _percent(result: RunResult, split: str) -> str:
    return f"{result.metrics[f'{split}_accuracy']:.1%}"


def _ids(results: Iterable[RunResult]) -> tuple[str, ...]:
    return tuple(r.trial_id for r in results)


def _count(things: Sized, one: str, many: str) -> str:
    return f"{len(things)} {one if len(things) == 1 else many}"


def _names(results: Sequence[RunResult]) -> str:
    return _listed(r.label for r in results)


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
    return ", ".join(every[:SHOWN]) + more
