"""A study's results → results.csv, best/, report.md and report.html.

Reads the study again each time and overwrites what it wrote before; the same results give the same
bytes. What is said is jobs.page's, in which words and colours the templates'. The HTML page opens
offline: styles, scripts, charts and thumbnails all stand in the one file, and its own policy forbids
it to load anything.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from artclf.errors import StorageError
from artclf.records import Dataset
from artclf.storage import atomic_file
from jobs.cells import Table
from jobs.checks import Finding, check
from jobs.gather import RunResult, export_best, gather, read_study, winner, write_results
from jobs.page import Page, build_page

TEMPLATES = Path(__file__).parent / "templates"


WRITTEN = ("results.csv", "report.md", "report.html", "best")
"""What a report leaves in a study's folder."""


def write_report(
    study_dir: Path,
    dataset: Dataset | None = None,
    fetch_model: Callable[[str], None] = lambda trial_id: None,
    again: str = "",
) -> Path:
    """Writes results.csv, best/, report.md and report.html of a study, and returns the last one's path.

    Args:
        study_dir: the study's folder; every state of its trials will do, none need be finished.
        dataset: the data set it was trained on, for thumbnails and counts; without it there are names only.
        fetch_model: brings a trial's model to its run directory, where the study is kept elsewhere.
        again: the command that submits the study again; ``make submit GRID=…`` where nothing is said.

    Raises:
        ConfigError: if there is no study in the folder.
        StorageError: if study.json is damaged or something cannot be written.
    """
    study, results = read_study(study_dir), gather(study_dir)
    findings = check(results, study.objective, dataset.manifest if dataset else None)
    write_results(study_dir, results)
    best = winner(results, study.objective)
    if best is not None:
        findings = [*findings, *_export(study_dir, best, fetch_model)]
    fitting = dataset if dataset is not None and dataset.digest == study.data_digest else None
    page = build_page(study, results, findings, fitting, shlex.quote(str(study_dir / "best")), again)
    _write(study_dir / "report.md", render_markdown(page))
    _write(study_dir / "report.html", render_html(page))
    return study_dir / "report.html"


def _export(study_dir: Path, best: RunResult, fetch_model: Callable[[str], None]) -> list[Finding]:
    try:
        fetch_model(best.trial_id)
        export_best(study_dir, best)
    except StorageError as error:
        return [Finding("error", "The winner could not be copied to best/", str(error), (best.trial_id,))]
    return []


# -- rendering -----------------------------------------------------------------------------------


def render_html(page: Page) -> str:
    """Returns the page as one self-contained HTML file."""
    return _render("report.html.j2", page, autoescape=True)


def render_markdown(page: Page) -> str:
    """Returns the same as Markdown; every value is escaped, so no name can break a table."""
    return _render("report.md.j2", page, autoescape=False)


def _render(template: str, page: Page, *, autoescape: bool) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=None if autoescape else _markdown,
    )
    environment.filters["table"] = _markdown_table
    return environment.get_template(template).render(page=page)


def _markdown_table(table: Table) -> Any:
    from markupsafe import Markup

    def row(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    lines = [row(map(_markdown, table.headings)), row("---:" if numeric else "---" for numeric in table.numeric)]
    lines += [row(_markdown(cell.text) for cell in cells) for cells in table.rows]
    return Markup("\n".join(lines))  # escaped cell by cell above


_LINE_ENDS = re.compile(r"[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]+")
_MARKDOWN = re.compile(r"[\\`*<>\[\]|~]|(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])")


def _markdown(value: Any) -> Any:
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return _MARKDOWN.sub(lambda found: f"\\{found[0]}", _LINE_ENDS.sub(" ", value.replace("&", "&amp;")))


_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
"""Control characters, those that turn the direction of all text behind them, and halves of surrogates."""


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(_UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text), encoding="utf-8", newline="\n")
