"""What a study's report says, worked out as plain values: the winner and how sure, tables, charts, words.

Results and findings in, a ``Page`` out. Reads the winner's predictions and the data set's pictures,
and writes nothing; how a page looks is the templates' business.
"""

from __future__ import annotations

import base64
import heapq
import io
import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from artclf.config import flatten
from artclf.errors import ArtclfError
from artclf.evaluate import Evaluation, Prediction, read_predictions
from artclf.records import SPLITS, Dataset
from artclf.rundir import RunDir
from jobs import charts
from jobs.cells import Cell, Table, amount, duration, money, parameters, rate, share, signed, time, whole, word
from jobs.charts import Dot, Line, Strip
from jobs.checks import Finding
from jobs.gather import (
    SEED,
    RunResult,
    SeedGroup,
    StudyInfo,
    ranked,
    seed_groups,
    setting_text,
    settings_key,
    without_seed,
)

MISTAKES = 24
THUMBNAIL = 160
"""Longest side of a thumbnail in pixels; 24 of them are some 150 kB in the page."""
MOST_COLOURS = 8
"""More curves than this cannot be told apart by colour: then only the winner has one."""
CONFUSED = 10
NAMED_SKIPS = 20

METRICS = {
    "val_accuracy": "validation accuracy",
    "val_top5_accuracy": "validation top-5 accuracy",
    "val_macro_f1": "validation macro F1",
    "val_weighted_f1": "validation weighted F1",
    "val_loss": "validation loss",
}


# -- what a page is made of ----------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """A large figure with what it is and what stands behind it."""

    name: str
    value: str
    note: str


@dataclass(frozen=True)
class Verdict:
    """The winner and how sure."""

    trial: RunResult
    figures: Sequence[Figure]
    sentences: Sequence[str]
    settings: Sequence[tuple[str, str]]
    every_setting: Sequence[tuple[str, str]]
    made_by: str


@dataclass(frozen=True)
class Effect:
    """What one setting (or several tied together) does to the objective; uneven if its values met different others."""

    name: str
    sentence: str
    uneven: bool
    chart: str
    table: Table


@dataclass(frozen=True)
class Mistake:
    """A picture that the winner got wrong, and how sure it was."""

    name: str
    truth: str
    predicted: str
    probability: str
    probability_of_truth: str
    thumbnail: str | None


@dataclass(frozen=True)
class DataCard:
    """What the data set is; ``skipped`` has (reason, count, some names, how many more) for each reason."""

    sentence: str
    facts: Sequence[tuple[str, str]] = ()
    table: Table | None = None
    skipped: Sequence[tuple[str, int, Sequence[str], int]] = ()
    warnings: Sequence[str] = ()


@dataclass(frozen=True)
class Page:
    """All that the report says."""

    study: StudyInfo
    summary: str
    objective: str
    findings: Sequence[Finding]
    verdict: Verdict | None
    leaderboard: Table | None
    effects: Sequence[Effect]
    curves: str
    legend: Sequence[tuple[str, str]]
    sparks: Sequence[tuple[str, str]]
    learning: Table | None
    split: str
    heatmap: str
    confused: Table | None
    classes: Table | None
    mistakes: Sequence[Mistake]
    mistakes_note: str
    cost: str
    cost_sentence: str
    front: Table | None
    hardware: Table | None
    data: DataCard
    unfinished: Table | None
    predict: str
    again: str


def build_page(
    study: StudyInfo,
    results: Sequence[RunResult],
    findings: Sequence[Finding],
    dataset: Dataset | None = None,
    best_folder: str = "best",
    again: str = "",
) -> Page:
    """Returns what the report says about these results."""
    order = ranked(results, study.objective)
    best = order[0] if order else None
    split = "test" if best and "test" in best.evaluations else "val"
    evaluation = best.evaluations.get(split) if best else None
    names = _display_names(best, dataset)
    mistakes, mistakes_note = _mistakes(best, split, names, dataset)
    front = _front(order, study)
    legend, lines = _overlay(order, results)
    return Page(
        study=study,
        summary=_summary(study, results),
        objective=_metric_name(study),
        findings=findings,
        verdict=_verdict(study, results, order) if best else None,
        leaderboard=_leaderboard(study, order) if order else None,
        effects=_effects(study, order),
        curves=charts.curves("Accuracy of each trial over epochs", lines, "accuracy") if lines else "",
        legend=legend,
        sparks=_sparks(order, results),
        learning=_learning(order, results),
        split="test" if split == "test" else "validation",
        heatmap=_heatmap(evaluation, names) if evaluation else "",
        confused=_confused(evaluation, names) if evaluation else None,
        classes=_classes(evaluation, names) if evaluation else None,
        mistakes=mistakes,
        mistakes_note=mistakes_note,
        cost=_cost_chart(order, study, front) if len(order) > 1 and front else "",
        cost_sentence=_cost_sentence(order),
        front=_front_table(order, study, front) if len(order) > 1 and front else None,
        hardware=_hardware(results),
        data=_data_card(dataset, best),
        unfinished=_unfinished(results),
        predict=f".venv/bin/python -m artclf.predict {best_folder} PICTURE.jpg",
        again=again or f"make submit GRID={study.grid}",
    )


# -- the head ------------------------------------------------------------------------------------


def _summary(study: StudyInfo, results: Sequence[RunResult]) -> str:
    states = [r.state for r in results]
    counts = [f"{states.count(state)} {state}" for state in dict.fromkeys(sorted(states, key=_STATE_ORDER.index))]
    trials = f"{len(results)} trial{'s' if len(results) != 1 else ''}"
    return f"{trials}: {', '.join(counts)}" if results else "No trials"


_STATE_ORDER = ["done", "running", "interrupted", "failed", "diverged", "damaged", "missing"]


def _metric_name(study: StudyInfo) -> str:
    return METRICS.get(study.objective.metric, study.objective.metric.replace("_", " "))


def wilson(hits: int, count: int) -> tuple[float, float]:
    """Returns the 95 % interval of a share by Wilson's score (Wilson 1927, JASA 22, p. 209), sound near 0 and 1 too."""
    z = statistics.NormalDist().inv_cdf(0.975)
    share, spread = hits / count, z * z / count
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / count + spread / count / 4) / (1 + spread)
    return max(centre - half, 0.0), min(centre + half, 1.0)


# -- the winner and how sure ---------------------------------------------------------------------


def _verdict(study: StudyInfo, results: Sequence[RunResult], order: Sequence[RunResult]) -> Verdict:
    best = order[0]
    group = next(g for g in seed_groups(results) if best in g.results)
    settings = flatten(best.model.get("settings") or {})
    return Verdict(
        trial=best,
        figures=_figures(study, best, group, len(order)),
        sentences=[*_interval_sentences(best, order), *_seed_sentences(study, results, group)],
        settings=[(name, setting_text(value)) for name, value in best.params.items()],
        every_setting=[(name, setting_text(value)) for name, value in settings.items()],
        made_by=_made_by(best),
    )


def _figures(study: StudyInfo, best: RunResult, group: SeedGroup, finished: int) -> list[Figure]:
    split, words = _split_of(best)
    figures = []
    if split in best.evaluations:
        evaluation = best.evaluations[split]
        low, high = _interval(evaluation)
        note = f"95% interval {low:.1%} to {high:.1%}, {evaluation.count:,} pictures"
        figures.append(Figure(_capital(f"{words} accuracy"), f"{evaluation.accuracy:.1%}", note))
        if len(evaluation.per_class) > 5:
            note = "the right class is among the five most probable"
            figures.append(Figure(_capital(f"{words} top-5 accuracy"), f"{evaluation.top5_accuracy:.1%}", note))
    value = best.metrics[study.objective.metric]
    of_trials = f"chosen by this among {finished} finished trial{'s' if finished != 1 else ''}"
    figures.append(Figure(_capital(_metric_name(study)), f"{value:.4f}", of_trials))
    metric = f"{split}_accuracy"
    mean, spread = group.mean(metric), group.spread(metric)
    if mean is not None and spread is not None:
        note = f"{words} accuracy, mean ± standard deviation over {len(group.values(metric))} seeds"
        figures.append(Figure("Over seeds", f"{mean:.1%} ± {spread * 100:.1f}", note))
    return figures


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _interval_sentences(best: RunResult, order: Sequence[RunResult]) -> list[str]:
    split, words = _split_of(best)
    said = []
    if split == "val":
        said.append(
            "There is no test split: the pictures that chose the winner also score it, so its figure is too good."
        )
    if split not in best.evaluations:
        return said
    low, high = _interval(best.evaluations[split])
    own = settings_key(without_seed(best.params))
    runner = next((r for r in order if settings_key(without_seed(r.params)) != own), None)
    if runner is None:
        return [*said, "There is no other setting to compare it with."]
    value = runner.metrics.get(f"{split}_accuracy")
    if value is None:
        return said
    if low <= value <= high:
        place = f"inside the winner's interval: {words} does not tell the two apart"
    elif value < low:
        place = f"below the winner's interval: the lead is more than the choice of {words} pictures explains"
    else:
        place = f"above the winner's interval: {words} prefers the runner-up, though validation chose the winner"
    return [*said, f"The runner-up, {runner.label}, has {value:.1%} {words} accuracy, {place}."]


def _seed_sentences(study: StudyInfo, results: Sequence[RunResult], group: SeedGroup) -> list[str]:
    metric, sign = study.objective.metric, _sign(study)
    scored = [(mean, g) for g in seed_groups(results) if (mean := g.mean(metric)) is not None]
    if group.spread(metric) is None:
        return [
            "It was trained with one seed only, so how far chance moves it is not known; add train.seed to the grid."
        ]
    top_mean, top = max(scored, key=lambda pair: sign * pair[0])
    own = group.mean(metric)
    if settings_key(top.params) == settings_key(group.params) or own is None:
        return []
    other = _params_text(top.params)
    return [
        f"By the mean over seeds {other} is ahead ({_metric_name(study)} {top_mean:.4f} against {own:.4f}): "
        "the winner may owe its place to its seed."
    ]


def _interval(evaluation: Evaluation) -> tuple[float, float]:
    return wilson(round(evaluation.accuracy * evaluation.count), evaluation.count)


def _split_of(best: RunResult) -> tuple[str, str]:
    return ("test", "test") if "test" in best.evaluations else ("val", "validation")


def _sign(study: StudyInfo) -> int:
    return 1 if study.objective.mode == "max" else -1


def _made_by(best: RunResult) -> str:
    env = best.environment
    known = (("artclf", "artclf"), ("tensorflow", "TensorFlow"), ("keras", "Keras"), ("python", "Python"))
    parts = [f"{title} {env[key]}" for key, title in known if env.get(key)]
    parts += [f"commit {str(env['commit'])[:12]}"] if env.get("commit") else []
    parts += [f"image {str(env['image_digest'])[:19]}"] if env.get("image_digest") else []
    return ", ".join(parts)


# -- the trials side by side ---------------------------------------------------------------------


def _leaderboard(study: StudyInfo, order: Sequence[RunResult]) -> Table:
    """Returns the finished trials, best first; top-5 only where it is not 1 for all."""
    shown = [c for c in _SCORES if any(c[1] in r.metrics for r in order)]
    shown = [c for c in shown if "top5" not in c[1] or any(r.metrics.get(c[1], 1) < 1 for r in order)]
    if all(c[1] != study.objective.metric for c in shown):
        shown.insert(0, (_metric_name(study), study.objective.metric))
    costly = any(r.cost_usd for r in order)
    names = _short_names(study.varying)
    headings = ["#", "trial", *names.values(), *(title for title, _ in shown), "gap", "images/s", "time"]
    hints = ["", "", *names, *(metric for _, metric in shown), "train minus validation accuracy", "", "", "", ""]
    rows = []
    for rank, r in enumerate(order, start=1):
        cells = [Cell(str(rank), rank), Cell(r.trial_id, r.trial_id)]
        cells += [_setting(r, name) for name in names]
        cells += [rate(r.metrics.get(metric), bar=metric == study.objective.metric) for _, metric in shown]
        cells += [signed(r.metrics.get("gap")), amount(r.images_per_second), time(r.seconds)]
        cells += [money(r.cost_usd)] if costly else []
        rows.append([*cells, parameters(r.parameters)])
    headings += [*(["cost"] if costly else []), "parameters"]
    numeric = [True, False, *(_all_numbers(order, name) for name in names), *[True] * (len(headings) - 2 - len(names))]
    return Table(headings, rows, numeric, hints[: len(headings)], marked=0)


_SCORES = [
    ("val acc", "val_accuracy"),
    ("val top-5", "val_top5_accuracy"),
    ("val F1", "val_macro_f1"),
    ("test acc", "test_accuracy"),
    ("test top-5", "test_top5_accuracy"),
    ("test F1", "test_macro_f1"),
]


def _effects(study: StudyInfo, order: Sequence[RunResult]) -> list[Effect]:
    """Returns one effect for each setting that varied, settings that only vary together as one."""
    metric = study.objective.metric
    values = [r.metrics[metric] for r in order]
    axes = {axis: _levels(axis, order) for axis in _axes(study, order)}
    letters = max((len(level) for levels in axes.values() for level in levels), default=0)
    effects = []
    for axis, levels in axes.items():
        reached = {level: [r.metrics[metric] for r in members] for level, members in levels.items()}
        rows = [Strip(level, found, statistics.fmean(found)) for level, found in reached.items()]
        name = " + ".join(axis)
        title = f"{_metric_name(study)} by {name}"
        chart = charts.strips(title, rows, min(values), max(values), letters, _metric_name(study))
        sentence = _effect_sentence(study, rows)
        effects.append(Effect(name, sentence, _is_uneven(axis, levels), chart, _effect_table(rows)))
    return effects


def _levels(axis: Sequence[str], order: Sequence[RunResult]) -> dict[str, list[RunResult]]:
    """Returns the trials by their value of a setting, null first, numbers by size, texts in alphabetical order."""
    levels: dict[str, list[RunResult]] = {}
    for r in sorted(order, key=lambda r: _natural([r.params.get(name) for name in axis])):
        levels.setdefault(", ".join(_value_text(r, name) for name in axis), []).append(r)
    return levels


def _axes(study: StudyInfo, order: Sequence[RunResult]) -> list[tuple[str, ...]]:
    axes: dict[tuple[int, ...], list[str]] = {}
    for name in study.varying:
        places: dict[str, int] = {}
        partition = tuple(places.setdefault(_value_key(r, name), len(places)) for r in order)
        if name != SEED and len(places) > 1:
            axes.setdefault(partition, []).append(name)
    return [tuple(names) for names in axes.values()]


def _effect_sentence(study: StudyInfo, strips: Sequence[Strip]) -> str:
    sign = _sign(study)
    best, worst = max(strips, key=lambda s: sign * s.mean), min(strips, key=lambda s: sign * s.mean)
    return f"{best.name} is best on average, {abs(best.mean - worst.mean):.4f} better than {worst.name}."


def _is_uneven(axis: Sequence[str], levels: Mapping[str, Sequence[RunResult]]) -> bool:
    others = [
        sorted(settings_key({k: v for k, v in r.params.items() if k not in axis}) for r in members)
        for members in levels.values()
    ]
    return any(other != others[0] for other in others)


def _effect_table(strips: Sequence[Strip]) -> Table:
    rows = [
        [Cell(s.name, s.name), rate(s.mean), rate(min(s.values)), rate(max(s.values)), whole(len(s.values))]
        for s in strips
    ]
    return Table(["value", "mean", "lowest", "highest", "trials"], rows, [False, True, True, True, True])


def _overlay(order: Sequence[RunResult], results: Sequence[RunResult]) -> tuple[list[tuple[str, str]], list[Line]]:
    """Returns the legend (name, style) and the validation curves; many trials are grey but the winner."""
    drawn = [r for r in _by_rank(order, results) if _points(r, "val_accuracy")]
    few = len(drawn) <= MOST_COLOURS
    lines = [
        Line(r.label, _points(r, "val_accuracy"), f"s{i}" if few else "win" if i == 0 and order else "rest")
        for i, r in enumerate(drawn)
    ]
    if len(drawn) == 1:  # nothing to compare it with, so there is room for its train curve
        lines = [
            Line("validation", lines[0].points, "win"),
            Line("train", _points(drawn[0], "accuracy"), "s1", dashed=True),
        ]
    legend = [(line.name, line.style) for line in lines if line.style != "rest"]
    if len(lines) > len(legend):
        legend.append((f"the other {len(lines) - len(legend)}", "rest"))
    return legend, lines[::-1]


def _sparks(order: Sequence[RunResult], results: Sequence[RunResult]) -> list[tuple[str, str]]:
    drawn = [r for r in _by_rank(order, results) if _points(r, "val_accuracy")]
    every = [y for r in drawn for metric in ("accuracy", "val_accuracy") for _, y in _points(r, metric)]
    if not every or len(drawn) == 1:  # the one trial's curves stand in the large chart
        return []
    axis = charts.ticks(min(every), max(every))
    low, high = max(axis[0], 0.0), min(axis[-1], 1.0)
    epochs = max(r.epochs for r in drawn)
    return [
        (
            r.label,
            charts.spark(
                f"Train and validation accuracy of {r.label}",
                _points(r, "accuracy"),
                _points(r, "val_accuracy"),
                epochs,
                low,
                high,
            ),
        )
        for r in drawn
    ]


def _learning(order: Sequence[RunResult], results: Sequence[RunResult]) -> Table | None:
    rows = [
        [
            Cell(r.label, r.label),
            whole(r.epochs),
            whole(r.best_epoch),
            rate(r.metrics.get("train_accuracy")),
            rate(r.metrics.get("val_accuracy")),
            rate(next((y for _, y in reversed(_points(r, "val_loss"))), None)),
        ]
        for r in _by_rank(order, results)
        if r.history
    ]
    headings = ["trial", "epochs", "best epoch", "train acc", "val acc", "last val loss"]
    return Table(headings, rows, [False, *[True] * 5]) if rows else None


def _by_rank(order: Sequence[RunResult], results: Sequence[RunResult]) -> list[RunResult]:
    return [*order, *(r for r in results if r not in order)]


def _points(result: RunResult, metric: str) -> list[tuple[float, float]]:
    values = ((line["epoch"], line.get(metric)) for line in result.history)
    return [(float(x), float(y)) for x, y in values if isinstance(y, int | float) and math.isfinite(y)]


# -- class by class ------------------------------------------------------------------------------


def _display_names(best: RunResult | None, dataset: Dataset | None) -> dict[str, str]:
    """Returns {slug: display name} as far as the winner's model or the data set tells them."""
    names = {info.slug: info.display for info in dataset.classes} if dataset else {}
    for info in (best.model.get("classes") or []) if best else []:
        if isinstance(info, dict) and info.get("slug"):
            names[str(info["slug"])] = str(info.get("display") or info["slug"])
    return names


def _heatmap(evaluation: Evaluation, names: Mapping[str, str]) -> str:
    shown = [names.get(c.name, c.name) for c in evaluation.per_class]
    return charts.heatmap("Confusion matrix of the winner, a row a true class", shown, evaluation.confusion)


def _confused(evaluation: Evaluation, names: Mapping[str, str]) -> Table | None:
    slugs = [c.name for c in evaluation.per_class]
    pairs = [
        (count, sum(row), names.get(slugs[i], slugs[i]), names.get(slugs[j], slugs[j]))
        for i, row in enumerate(evaluation.confusion)
        for j, count in enumerate(row)
        if i != j and count
    ]
    worst = sorted(pairs, key=lambda p: (-p[0], -p[0] / p[1], p[2], p[3]))[:CONFUSED]
    rows = [
        [Cell(truth, truth), Cell(taken, taken), whole(count), whole(support), share(count / support)]
        for count, support, truth, taken in worst
    ]
    headings = ["true class", "taken for", "pictures", "of", "share"]
    return Table(headings, rows, [False, False, True, True, True]) if rows else None


def _classes(evaluation: Evaluation, names: Mapping[str, str]) -> Table:
    """Returns every class's scores, the lowest F1 first; a class without pictures comes last."""
    worst_first = sorted(evaluation.per_class, key=lambda c: (c.support == 0, c.f1, c.name))
    rows = [
        [
            Cell(names.get(c.name, c.name), names.get(c.name, c.name)),
            rate(c.precision),
            rate(c.recall),
            rate(c.f1, bar=True),
            whole(c.support),
        ]
        for c in worst_first
    ]
    return Table(["class", "precision", "recall", "F1", "pictures"], rows, [False, True, True, True, True])


def _mistakes(
    best: RunResult | None, split: str, names: Mapping[str, str], dataset: Dataset | None
) -> tuple[list[Mistake], str]:
    """Returns the pictures that the winner was most sure of and wrong about, and what is to be said about them."""
    if best is None:
        return [], ""
    try:
        worst = worst_mistakes(read_predictions(RunDir(best.path).predictions_csv(split)))
    except (OSError, ValueError, ArtclfError):
        return [], "The winner's predictions could not be read."
    note = "" if dataset else "The data set was not at hand, so there are names but no pictures."
    mistakes = [
        Mistake(
            p.name,
            names.get(p.class_, p.class_),
            names.get(p.predicted, p.predicted),
            f"{p.probability:.0%}",
            f"{p.probability_of_class:.0%}",
            _thumbnail(dataset, p.record) if dataset else None,
        )
        for p in worst
    ]
    return mistakes, note if mistakes else "It got every picture right."


def worst_mistakes(predictions: Iterable[Prediction]) -> list[Prediction]:
    """Returns the wrong predictions with the highest probability, at most MISTAKES, surest first."""
    wrong = (p for p in predictions if p.class_ != p.predicted)
    return heapq.nsmallest(MISTAKES, wrong, key=lambda p: (-p.probability, p.record))


def _thumbnail(dataset: Dataset, record: int) -> str | None:
    """Returns a small JPEG as a data: URI, or None if the picture cannot be had."""
    from PIL import Image

    from artclf.images import read_picture

    if not 0 <= record < len(dataset):
        return None
    try:
        image = Image.fromarray(read_picture(dataset.read(record)).pixels)
    except ArtclfError:
        return None
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


# -- time, money, machines -----------------------------------------------------------------------


def _price_of(order: Sequence[RunResult]) -> tuple[str, Callable[[RunResult], float | None]]:
    """Returns what a trial is paid in: dollars where any were spent, else seconds."""
    if any(r.cost_usd for r in order):
        return "cost in US dollars", lambda r: r.cost_usd
    return "seconds", lambda r: r.seconds


def _front(order: Sequence[RunResult], study: StudyInfo) -> list[int]:
    """Returns the places in ``order`` of the trials that no other beats in price and objective at once."""
    _, price = _price_of(order)
    worth = [-_sign(study) * r.metrics[study.objective.metric] for r in order]
    front, reached = [], math.inf
    for _, p, i in sorted((worth[i], p, i) for i, r in enumerate(order) if (p := price(r)) is not None):
        if p < reached:  # the better ones came before, so only a cheaper one adds something
            front.append(i)
            reached = p
    return front


def _cost_chart(order: Sequence[RunResult], study: StudyInfo, front: Sequence[int]) -> str:
    words, price = _price_of(order)
    metric = study.objective.metric
    dots = [
        Dot(r.label, p, r.metrics[metric], "win" if i in front else "rest", f"#{i + 1}" if i in front else "")
        for i, r in enumerate(order)
        if (p := price(r)) is not None
    ]
    return charts.scatter(f"{_metric_name(study)} against {words}", dots[::-1], words, _metric_name(study))


def _cost_sentence(order: Sequence[RunResult]) -> str:
    spent, seconds = sum(r.cost_usd or 0 for r in order), sum(r.seconds or 0 for r in order)
    total = f"The finished trials took {duration(seconds)} together"
    if spent:
        return f"{total} and cost ${spent:,.2f}."
    rented = sorted({r.instance for r in order if r.instance})
    if rented:
        return f"{total}, on {', '.join(rented)}; what an hour of it costs is not known here."
    return f"{total}; on one's own machine that costs nothing."


def _front_table(order: Sequence[RunResult], study: StudyInfo, front: Sequence[int]) -> Table:
    words, price = _price_of(order)
    as_cell = money if "dollars" in words else time
    rows = [
        [
            Cell(f"#{i + 1}", i + 1),
            Cell(order[i].label, order[i].label),
            as_cell(price(order[i])),
            rate(order[i].metrics[study.objective.metric]),
        ]
        for i in front
    ]
    return Table(
        ["rank", "trial", "cost" if "dollars" in words else "time", _metric_name(study)],
        rows,
        [True, False, True, True],
    )


def _hardware(results: Sequence[RunResult]) -> Table | None:
    """Returns a row a kind of machine, the fastest first."""
    machines: dict[tuple[str, ...], list[RunResult]] = {}
    for r in results:
        if r.environment:
            machines.setdefault(tuple(_known(r.environment.get(key)) for key in _MACHINE), []).append(r)
    rows = []
    for machine, members in machines.items():
        speeds = [r.images_per_second for r in members if r.images_per_second is not None]
        span = f"{min(speeds):,.0f} to {max(speeds):,.0f}" if speeds else "–"
        seconds = sum(r.seconds or 0 for r in members)
        middle = statistics.median(speeds) if speeds else None
        costs = [r.cost_usd for r in members if r.cost_usd is not None]
        cells = [Cell(text, text) for text in machine]
        cells += [whole(len(members)), amount(middle), Cell(span, middle or 0), time(seconds)]
        rows.append([*cells, money(sum(costs) if costs else None)])
    rows.sort(key=lambda row: -float(row[len(_MACHINE) + 1].sort or 0))
    headings = ["device", "instance", "cores", "memory GB", "driver", "trials", "images/s", "from … to", "time", "cost"]
    return Table(headings, rows, [False, False, True, True, False, True, True, True, True, True]) if rows else None


_MACHINE = ("device", "instance", "cores", "memory_gb", "driver")


def _known(value: Any) -> str:
    return "–" if value is None else str(value)


# -- the data, and what is not done --------------------------------------------------------------


def _data_card(dataset: Dataset | None, best: RunResult | None) -> DataCard:
    if dataset is None:
        return DataCard("The data set was not at hand when this report was written.")
    manifest = dataset.manifest
    counts = manifest.get("counts") or {}
    used = f"{counts.get('used', len(dataset)):,} pictures of {len(dataset.classes)} classes"
    parts = [f"{counts[split]:,} {split}" for split in SPLITS if split in counts]
    facts = [
        ("digest", dataset.digest[:16]),
        ("files found", f"{counts['found']:,}" if "found" in counts else "–"),
        ("left out", f"{counts.get('skipped', 0):,} not readable, {counts.get('duplicates', 0):,} as duplicates"),
        ("near duplicates", _near_duplicates(dataset)),
        ("converted", ", ".join(f"{n:,} {what}" for what, n in (manifest.get("fixed") or {}).items()) or "none"),
        ("same picture in two classes", f"{len(manifest.get('conflicts') or ()):,}"),
    ]
    return DataCard(
        f"{used}: {', '.join(parts)}.",
        facts,
        _class_counts(manifest, best),
        _skipped(manifest.get("skipped") or []),
        [str(warning) for warning in manifest.get("warnings") or []],
    )


def _near_duplicates(dataset: Dataset) -> str:
    found = dataset.manifest.get("near_duplicates") or {}
    pairs = set(zip(dataset.index["group"].tolist(), dataset.index["split"].tolist(), strict=True))
    torn = len(pairs) - len({group for group, _ in pairs})
    across = f"{torn:,} of them across splits" if torn else "none across two splits"
    return f"{found.get('groups', 0):,} groups of {found.get('pictures', 0):,} pictures, {across}"


def _class_counts(manifest: Mapping[str, Any], best: RunResult | None) -> Table:
    infos = manifest["classes"]
    about = list(dict.fromkeys(key for info in infos for key, value in (info.get("about") or {}).items() if value))
    weights = _class_weights(infos, best)
    largest = max(1, *(_pictures_of(info) for info in infos))
    rows = []
    for info in sorted(infos, key=lambda info: (-_pictures_of(info), info["display"])):
        total = _pictures_of(info)
        cells = [Cell(info["display"], info["display"])]
        cells += [whole((info.get("counts") or {}).get(split, 0)) for split in SPLITS]
        cells.append(Cell(f"{total:,}", total, total / largest))
        cells += [rate(weights.get(info["slug"]))] if weights else []
        rows.append([*cells, *(word((info.get("about") or {}).get(key)) for key in about)])
    headings = ["class", *SPLITS, "all", *(["weight in the loss"] if weights else []), *about]
    return Table(headings, rows, [False, *[True] * (5 if weights else 4), *[False] * len(about)])


def _class_weights(infos: Sequence[Mapping[str, Any]], best: RunResult | None) -> dict[str, float]:
    """Returns {slug: weight} of the winner's classes if it weighed them: pictures / (classes x those of the class)."""
    settings = flatten(best.model.get("settings") or {}) if best else {}
    if best is None or settings.get("train.class_weight") != "balanced":
        return {}
    own = {info["slug"] for info in best.model["classes"]}
    train = {info["slug"]: int((info.get("counts") or {}).get("train", 0)) for info in infos if info["slug"] in own}
    return {slug: sum(train.values()) / (len(train) * max(n, 1)) for slug, n in train.items()}


def _pictures_of(info: Mapping[str, Any]) -> int:
    return sum(int(n) for n in (info.get("counts") or {}).values())


def _skipped(files: Sequence[Mapping[str, Any]]) -> list[tuple[str, int, list[str], int]]:
    """Returns (reason, count, some names, how many more) for each reason, the commonest first."""
    reasons: dict[str, list[str]] = {}
    for file in files:
        reasons.setdefault(str(file.get("reason")), []).append(str(file.get("name")))
    ordered = sorted(reasons.items(), key=lambda item: (-len(item[1]), item[0]))
    return [(r, len(names), names[:NAMED_SKIPS], max(len(names) - NAMED_SKIPS, 0)) for r, names in ordered]


def _unfinished(results: Sequence[RunResult]) -> Table | None:
    rows = [
        [
            Cell(r.trial_id, r.trial_id),
            Cell(r.label, r.label),
            Cell(r.state, r.state),
            Cell(r.reason or ("–" if r.state == "running" else "no reason was left behind"), r.reason),
            whole(r.epochs),
            rate(r.metrics.get("val_accuracy")),
        ]
        for r in sorted((r for r in results if r.state != "done"), key=lambda r: _STATE_ORDER.index(r.state))
    ]
    headings = ["trial", "settings", "state", "reason", "epochs", "val acc so far"]
    return Table(headings, rows, [False, False, False, False, True, True]) if rows else None


# -- settings as text ---------------------------------------------------------------------------


def _short_names(varying: Sequence[str]) -> dict[str, str]:
    """Returns {dotted name: its last part, or all of it where two end alike}."""
    last = [name.rpartition(".")[2] for name in varying]
    return {name: short if last.count(short) == 1 else name for name, short in zip(varying, last, strict=True)}


def _params_text(params: Mapping[str, Any]) -> str:
    names = _short_names(list(params))
    return " ".join(f"{names[name]}={setting_text(value)}" for name, value in params.items()) or "the base settings"


def _value_key(result: RunResult, name: str) -> str:
    return json.dumps(result.params[name], sort_keys=True) if name in result.params else ""


def _value_text(result: RunResult, name: str) -> str:
    return setting_text(result.params[name]) if name in result.params else "unset"


def _natural(values: Sequence[Any]) -> list[tuple[int, float, str]]:
    """Returns a key that sorts null first, numbers by size and all else by its text."""
    return [
        (0, 0.0, "")
        if value is None
        else (1, float(value), "")
        if isinstance(value, int | float) and not isinstance(value, bool)
        else (2, 0.0, setting_text(value))
        for value in values
    ]


def _setting(result: RunResult, name: str) -> Cell:
    value = result.params.get(name)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return Cell(_value_text(result, name), float(value) if number and value is not None else _value_text(result, name))


def _all_numbers(order: Sequence[RunResult], name: str) -> bool:
    values = [r.params[name] for r in order if r.params.get(name) is not None]
    return bool(values) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
