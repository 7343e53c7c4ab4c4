"""jobs.report: right with any study, safe with any name, and a page that a real browser opens without a complaint."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from artclf.evaluate import Prediction
from artclf.records import Dataset
from jobs.cells import duration
from jobs.charts import heatmap, number, ticks
from jobs.page import MISTAKES, wilson, worst_mistakes
from jobs.report import write_report
from tests.chromium import PROGRAM, Tab, chromium
from tests.studies import NASTY, Fake, grid_of_fakes, make_dataset, make_study, rewrite

SECTIONS = (
    "Checks",
    "Winner",
    "Leaderboard",
    "Effect of each setting",
    "Learning curves",
    "Confusion",
    "Class by class",
    "Pictures it gets most wrong",
    "Cost against accuracy",
    "Hardware",
    "Data set",
    "Not finished",
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("data") / "animals", per_class=40)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset) -> Path:
    fakes = [replace(f, skill=1.5) for f in grid_of_fakes(model__dropout=[0.1, 0.4], train__seed=[0, 1, 2])]
    fakes[4] = replace(fakes[4], state="failed", reason="no space left on device")
    folder = make_study(tmp_path_factory.mktemp("root"), fakes, dataset=dataset)
    write_report(folder, dataset)
    return folder


def html(study: Path, dataset: Dataset | None = None) -> str:
    return write_report(study, dataset).read_text(encoding="utf-8")


def markdown(study: Path, dataset: Dataset | None = None) -> str:
    write_report(study, dataset)
    return (study / "report.md").read_text(encoding="utf-8")


class Tags(HTMLParser):
    """Collects the tags of a page, and those that are left open or closed twice."""

    VOID = frozenset({"meta", "link", "br", "img", "wbr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


# -- what it says --------------------------------------------------------------------------------


def test_a_report_has_every_section(study: Path) -> None:
    text = (study / "report.html").read_text(encoding="utf-8")
    assert re.findall(r"<h2>(.*?)</h2>", text) == list(SECTIONS)


def test_a_report_writes_results_and_best_too(study: Path) -> None:
    assert (study / "results.csv").is_file()
    assert (study / "best" / "model.keras").is_file()


def test_writing_again_gives_the_same_bytes(study: Path, dataset: Dataset) -> None:
    names = ("report.html", "report.md", "results.csv")
    before = [(study / name).read_bytes() for name in names]
    write_report(study, dataset)
    assert [(study / name).read_bytes() for name in names] == before


def test_the_winner_comes_with_an_interval_seeds_and_the_runner_up(study: Path, dataset: Dataset) -> None:
    text = markdown(study, dataset)
    assert re.search(r"Test accuracy: \*\*[\d.]+%\*\* \(95% interval [\d.]+% to [\d.]+%, 12 pictures\)", text)
    assert re.search(r"Over seeds: \*\*[\d.]+% ± [\d.]+\*\*", text)
    assert "The runner-up, dropout=" in text


def test_failed_trials_stand_in_the_report_with_their_reason(study: Path, dataset: Dataset) -> None:
    text = markdown(study, dataset)
    assert "error: 1 of 6 trials failed" in text
    assert "| failed | no space left on device |" in text


def test_the_data_card_counts_pictures_and_names_skipped_files(study: Path, dataset: Dataset) -> None:
    text = html(study, dataset)
    assert "120 pictures of 3 classes: 96 train, 12 val, 12 test." in text
    assert "1 left out: not a picture: HTML" in text
    assert "cat/&lt;torn&gt;.jpg" in text
    assert "2 groups of 4 pictures" in text


def test_mistakes_are_shown_as_thumbnails_within_the_page(study: Path, dataset: Dataset) -> None:
    images = [attributes for tag, attributes in Tags(html(study, dataset)).found if tag == "img"]
    assert images
    assert all((image["src"] or "").startswith("data:image/jpeg;base64,") for image in images)


def test_without_the_data_set_mistakes_are_names_only(study: Path) -> None:
    text = html(study)
    assert "<img" not in text
    assert "names but no pictures" in text
    assert "The data set was not at hand" in text


def test_pictures_of_another_data_set_are_never_shown(tmp_path: Path, study: Path) -> None:
    other = make_dataset(tmp_path / "other", per_class=20)
    text = html(study, other)
    assert "<img" not in text
    assert "The data set at hand is not the one that was trained on" in text


def test_settings_that_vary_together_have_one_effect(tmp_path: Path) -> None:
    pairs = ((64, 16), (128, 4), (256, 1))
    fakes = [
        Fake({"data.image_size": size, "data.crops": crops, "model.l2": l2}, skill=i + 1)
        for i, (size, crops) in enumerate(pairs)
        for l2 in (None, 0.01)
    ]
    text = markdown(make_study(tmp_path, fakes))
    assert re.findall(r"^### (.*)$", text, re.MULTILINE) == ["data.image_size + data.crops", "model.l2"]
    assert "Uneven" not in text


def test_an_effect_is_the_mean_over_the_other_settings(tmp_path: Path) -> None:
    study = make_study(tmp_path, grid_of_fakes(model__dropout=[0.1, 0.4], model__l2=[None, 0.01]))
    write_report(study)
    rows = [line.split(",") for line in (study / "results.csv").read_text().splitlines()]
    place = rows[0].index("val_macro_f1")
    mean = sum(float(row[place]) for row in rows[1:] if row[rows[0].index("model.dropout")] == "0.4") / 2
    effect = (study / "report.md").read_text().split("### model.dropout")[1].split("###")[0]
    assert f"| 0.4 | {mean:.4f} |" in effect


def test_an_effect_whose_values_met_different_settings_is_called_uneven(tmp_path: Path) -> None:
    fakes = grid_of_fakes(model__dropout=[0.1, 0.4], model__l2=[None, 0.01])
    assert "Uneven" in markdown(make_study(tmp_path, fakes[:3]))


def test_cost_is_told_in_dollars_where_any_were_spent(tmp_path: Path) -> None:
    fakes = [
        replace(f, seconds=3600, environment={"instance": "g4dn.xlarge"}) for f in grid_of_fakes(train__seed=[0, 1])
    ]
    study = make_study(tmp_path, fakes)
    rewrite(study / "study.json", resources={"usd_per_hour": 0.526})
    assert "and cost $1.05." in markdown(study)


def test_balanced_class_weights_are_printed(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", per_class=20)
    study = make_study(tmp_path, [Fake()], dataset=dataset)
    (model,) = study.glob("runs/*/model.json")
    rewrite(model, settings={"train": {"class_weight": "balanced"}})
    assert "weight in the loss" in markdown(study, dataset)


def test_a_winner_without_a_model_is_reported_and_the_report_still_written(tmp_path: Path) -> None:
    study = make_study(tmp_path, [Fake()])
    next(study.glob("runs/*/model.keras")).unlink()
    assert "The winner could not be copied to best/" in markdown(study)


def test_the_winner_is_used_from_where_it_lies(tmp_path: Path) -> None:
    study = make_study(tmp_path / "a folder", [Fake(skill=1)])
    assert f"python -m artclf.predict '{study}/best' PICTURE.jpg" in markdown(study)


def test_unreadable_predictions_are_said(tmp_path: Path) -> None:
    study = make_study(tmp_path, [Fake()])
    next(study.glob("runs/*/evaluation/predictions_test.csv")).write_bytes(b"record\n\xff\n")
    assert "The winner's predictions could not be read." in markdown(study)


# -- any study -----------------------------------------------------------------------------------


STUDIES: dict[str, list[Fake]] = {
    "one trial": [Fake()],
    "no trial at all": [],
    "none done": [Fake(state=None), Fake({"train.seed": 1}, state="failed", reason="<b>no</b>\n| space")],
    "all running": [Fake(state="running", epochs=1)],
    "one epoch": [Fake(epochs=1)],
    "perfect": [Fake(skill=50), Fake({"train.seed": 1}, skill=50)],
    "hopeless": [Fake(skill=-50)],
    "forty": grid_of_fakes(model__name=["a", "b"], model__dropout=[0, 0.1, 0.2, 0.3], train__seed=[0, 1, 2, 3, 4]),
    "odd values": [
        Fake({"model.head": [64, {"units": 8}]}),
        Fake({"data.augment": {"flip": True}}),
        Fake({"x": "=1|`"}),
    ],
}


@pytest.mark.parametrize("kind", STUDIES)
def test_the_report_of_any_study_is_well_formed(tmp_path: Path, kind: str) -> None:
    study = make_study(tmp_path, STUDIES[kind])
    assert Tags(html(study)).open == []
    assert "nan" not in (study / "report.md").read_text().lower().split()


@pytest.mark.parametrize("count", [2, 50, 80])
def test_any_number_of_classes_can_be_shown(tmp_path: Path, count: int) -> None:
    study = make_study(tmp_path, [Fake(skill=3)], classes=[f"class_{i}" for i in range(count)], per_class=4)
    text = html(study)
    assert Tags(text).open == []
    assert text.count('class="hit"') <= min(count, 60)


def test_a_study_without_a_test_split_is_labelled_validation(tmp_path: Path) -> None:
    text = markdown(make_study(tmp_path, [Fake()], splits=("val",)))
    assert "Validation accuracy: **" in text
    assert "The winner on the validation split" in text
    assert "test acc" not in text


def test_a_study_that_minimises_the_loss_ranks_the_lowest_first(tmp_path: Path) -> None:
    fakes = [Fake({"train.seed": 0}, skill=1), Fake({"train.seed": 1}, skill=4)]
    text = markdown(make_study(tmp_path, fakes, objective={"metric": "val_loss", "mode": "min"}))
    assert "train.seed = 1" in text.split("## Winner")[1].split("\n- ")[0]


# -- any name ------------------------------------------------------------------------------------


def test_nasty_class_names_are_text_everywhere(tmp_path: Path) -> None:
    page = html(make_study(tmp_path, [Fake(skill=1)], classes=NASTY))
    tags = Tags(page)
    assert tags.open == []
    assert [tag for tag, _ in tags.found].count("script") == 1
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_nasty_names_break_no_markdown_table(tmp_path: Path) -> None:
    text = markdown(make_study(tmp_path, [Fake(skill=1)], classes=NASTY))
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        bars = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(bars) == 1
    assert "<script>" not in text


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_no_name_adds_a_mark_to_a_chart(name: str) -> None:
    plain = [tag for tag, _ in Tags(heatmap("t", ["a", "b"], [[1, 1], [0, 2]])).found]
    assert [tag for tag, _ in Tags(heatmap(name, [name, "b"], [[1, 1], [0, 2]])).found][: len(plain)] == plain


def test_undecodable_names_and_direction_marks_are_made_visible(tmp_path: Path) -> None:
    reason = "cannot read pic\udce9ture \u202egnp.exe\x00"
    study = make_study(tmp_path, [Fake(state="failed", reason="x")])
    (status,) = study.glob("runs/*/status.json")
    status.write_text(json.dumps({**json.loads(status.read_text()), "reason": reason}))
    page = html(study)
    assert "\u202e" not in page
    assert "pic\N{REPLACEMENT CHARACTER}ture" in page


# -- figures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_is_wilsons(hits: int, count: int, low: float, high: float) -> None:
    """The expected ones are those of Newcombe 1998, Statistics in Medicine 17, p. 857, table I, method 3."""
    assert list(wilson(hits, count)) == pytest.approx([low, high], abs=5e-5)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_holds_the_share_and_stays_within_0_and_1(case: tuple[int, int]) -> None:
    low, high = wilson(*case)
    assert 0 <= low <= case[0] / case[1] + 1e-12
    assert case[0] / case[1] - 1e-12 <= high <= 1


@example(-1000000.0, -999999.9999999999)
@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_ticks_cover_both_ends_in_few_steps(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    found = ticks(low, high)
    slack = 1e-6 * max(abs(low), abs(high), 1)
    assert found[0] <= low + slack
    assert high - slack <= found[-1]
    assert 2 <= len(found) <= 12


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.96, "10.0 s"), (45, "45 s"), (200, "3 min 20 s"), (2460, "41 min"), (7500, "2 h 05 min")],
)
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_axis_numbers_are_short() -> None:
    assert [number(value) for value in (0.25, 1.0, 1500.0)] == ["0.25", "1", "1,500"]


def test_a_confusion_row_sums_to_one_also_when_only_the_worst_classes_are_shown() -> None:
    classes = 70
    confusion = [[3 if i == j else 1 if j == (i + 1) % classes else 0 for j in range(classes)] for i in range(classes)]
    confusion[5] = [1] * classes
    titles = re.findall(
        r"<title>c5 (?:taken for .*?|recognised): (\d+) of (\d+)</title>",
        heatmap("t", [f"c{i}" for i in range(classes)], confusion),
    )
    assert sum(int(count) for count, _ in titles) == int(titles[0][1]) == classes


def test_mistakes_are_the_surest_wrong_ones_in_a_stable_order() -> None:
    rows = [Prediction(i, f"{i}.jpg", "a", "b" if i % 2 else "a", (i % 10) / 10, 0.1) for i in range(100)]
    worst = worst_mistakes(rows)
    assert len(worst) == MISTAKES
    assert [p.record for p in worst[:4]] == [9, 19, 29, 39]
    assert all(p.class_ != p.predicted for p in worst)


# -- the page in a browser -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    if PROGRAM is None:
        pytest.skip("no Chromium on this machine")
    with chromium() as tab:
        yield tab


@pytest.mark.browser
def test_the_page_opens_without_a_complaint_and_loads_nothing(tab: Tab, study: Path, dataset: Dataset) -> None:
    page = write_report(study, dataset)
    tab.problems.clear()
    tab.requests.clear()
    tab.open(page)
    assert tab.problems == []
    assert [url for url in tab.requests if not url.startswith("data:")] == [page.as_uri()]
    assert tab.run("[...document.querySelectorAll('h2')].map(h => h.textContent)") == list(SECTIONS)


@pytest.mark.browser
def test_a_click_on_a_heading_sorts_the_leaderboard_both_ways(tab: Tab, study: Path) -> None:
    tab.open(study / "report.html")
    column = (
        "(() => { const t = document.querySelector('#leaderboard table'), h = [...t.tHead.rows[0].cells]; "
        "const i = h.findIndex(c => c.textContent === 'test acc'); h[i].firstElementChild.click(); "
        "return [h[i].ariaSort, ...[...t.tBodies[0].rows].map(r => +r.cells[i].dataset.sort)]; })()"
    )
    state, *values = tab.run(column)
    assert (state, values) == ("descending", sorted(values, reverse=True))
    state, *values = tab.run(column)
    assert (state, values) == ("ascending", sorted(values))


@pytest.mark.browser
def test_the_page_fits_a_telephone(tab: Tab, study: Path) -> None:
    tab.open(study / "report.html", width=400)
    assert tab.run("document.documentElement.scrollWidth") == 400


@pytest.mark.browser
def test_nasty_names_run_nothing(tab: Tab, tmp_path: Path) -> None:
    names = ('"><img src=x onerror="document.title=1">', "</title><script>document.title=1</script>", "</style>{{7*7}}")
    tab.problems.clear()
    tab.open(write_report(make_study(tmp_path, [Fake(skill=1)], classes=names)))
    assert tab.problems == []
    assert tab.run("document.title") == "fakes · artclf report"


def test_importing_the_launchers_side_of_results_loads_nothing_heavy() -> None:
    code = (
        "import sys, jobs.gather, jobs.checks, jobs.report; "
        "print(*{'tensorflow', 'pandas', 'matplotlib', 'jinja2', 'PIL'} & set(sys.modules))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == ""
