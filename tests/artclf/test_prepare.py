from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from artclf.errors import ConfigError, Interrupted
from artclf.images import read_picture
from artclf.prepare import Options, main, prepare, summary
from artclf.records import SPLITS, Dataset
from tests.bad_sets import CASES, TWO, Case, archive, classes, encoded, picture, pixels, write


def options_in(folder: Path, values: dict[str, Any]) -> Options:
    return Options(**{name: folder / value if name == "artists" else value for name, value in values.items()})


def looked_up(manifest: dict[str, Any], name: str) -> Any:
    if name == "displays":
        return [entry["display"] for entry in manifest["classes"]]
    if name == "classes":
        return [entry["slug"] for entry in manifest["classes"]]
    value: Any = manifest
    for part in name.split("."):
        value = value[int(part)] if part.isdigit() else value[part]
    return value


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.id}: {case.name}")
def test_bad_set_is_judged(case: Case, tmp_path: Path) -> None:
    sources = [str(source) for source in case.build(tmp_path)]
    began = set(tmp_path.rglob("*"))
    out = tmp_path / "out" / "set"
    if case.stops:
        with pytest.raises(ConfigError, match=case.stops):
            prepare(sources, out, options_in(tmp_path, dict(case.options)))
        assert not out.exists()
        assert {path.relative_to(tmp_path).parts[0] for path in set(tmp_path.rglob("*")) - began} <= {"out"}
    else:
        dataset = prepare(sources, out, options_in(tmp_path, dict(case.options)))
        assert {name: looked_up(dataset.manifest, name) for name in case.gives} == dict(case.gives)
        assert_sound(dataset)


def assert_sound(dataset: Dataset) -> None:
    counts = dataset.manifest["counts"]
    assert counts["found"] == counts["used"] + counts["skipped"] + counts["duplicates"]
    assert counts["used"] == len(dataset) == sum(counts[split] for split in SPLITS)
    assert len(dataset.manifest["skipped"]) == counts["skipped"]
    for row in dataset.index:
        assert len(dataset.classes) > row["label"] >= 0
    for record in range(len(dataset)):
        height, width, _ = read_picture(dataset.read(record)).pixels.shape
        assert (width, height) == (dataset.index["width"][record], dataset.index["height"][record])
    for group in np.unique(dataset.index["group"]):
        assert len(set(dataset.index["split"][dataset.index["group"] == group])) == 1
    for label in range(len(dataset.classes)):
        assert set(dataset.index["split"][dataset.index["label"] == label]) == set(range(len(SPLITS)))


def test_a_set_lies_at_its_name_with_true_hashes_and_rows(tmp_path: Path) -> None:
    dataset = prepare([str(write(tmp_path / "set", TWO))], tmp_path / "out")
    assert sorted(os.listdir(dataset.folder)) == ["index.npy", "manifest.json", "pictures.csv", "shards"]
    rows = list(dataset.pictures())
    assert [row["name"] for row in rows] == sorted(TWO)
    assert [SPLITS.index(row["split"]) for row in rows] == dataset.index["split"].tolist()
    assert str(tmp_path) not in json.dumps(dataset.manifest)


def test_sound_jpegs_and_plain_pngs_keep_their_bytes(tmp_path: Path) -> None:
    jpeg = encoded(pixels(50), "JPEG", quality=70)
    dataset = prepare([str(write(tmp_path / "set", {**TWO, "Ada/0.jpg": jpeg}))], tmp_path / "out")
    assert [dataset.read(0), dataset.read(1)] == [jpeg, TWO["Ada/0.png"]]


def test_other_formats_are_stored_as_png_of_the_same_pixels(tmp_path: Path) -> None:
    Image.fromarray(pixels(50)).convert("P").save(tmp_path / "palette.bmp")
    content = (tmp_path / "palette.bmp").read_bytes()
    dataset = prepare([str(write(tmp_path / "set", {**TWO, "Ada/0.bmp": content}))], tmp_path / "out")
    assert dataset.read(0).startswith(b"\x89PNG")
    np.testing.assert_array_equal(read_picture(dataset.read(0)).pixels, read_picture(content).pixels)


def test_a_salvaged_jpeg_is_stored_so_that_everyone_can_read_it(tmp_path: Path) -> None:
    cut = encoded(pixels(50), "JPEG")[:-2]
    folder = write(tmp_path / "set", {**classes("Ada", "Ben", count=60), "Ada/0.jpg": cut})
    assert prepare([str(folder)], tmp_path / "plain").manifest["counts"]["skipped"] == 1
    dataset = prepare([str(folder)], tmp_path / "salvaged", Options(salvage=True))
    assert dataset.manifest["counts"]["skipped"] == 0
    assert dataset.manifest["fixed"] == {"end marker": 1}
    assert read_picture(dataset.read(0)).pixels.shape == (32, 32, 3)


def test_larger_pictures_are_shrunk_to_the_longest_side_asked(tmp_path: Path) -> None:
    wide = encoded(np.kron(pixels(50, 64), np.ones((1, 2, 1), np.uint8)), "JPEG")
    dataset = prepare(
        [str(write(tmp_path / "set", {**TWO, "Ada/0.jpg": wide}))], tmp_path / "out", Options(max_side=40)
    )
    assert (dataset.index["width"][0], dataset.index["height"][0]) == (40, 20)
    assert dataset.manifest["fixed"] == {"shrunk": 1}


def test_too_many_bad_pictures_stop_with_the_worst_class_and_reasons(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", {**TWO, "Ada/x.jpg": b"<html>no</html>", "Ada/y.jpg": b""})
    with pytest.raises(ConfigError, match=r"2 of 14(.|\n)*Ada: 2 of 8 \(empty 1, not an image 1\)(.|\n)*Ada/x.jpg"):
        prepare([str(folder)], tmp_path / "out")
    seen: list[str] = []
    accepted = Options(max_bad=(1, 1))
    dataset = prepare([str(folder)], tmp_path / "out", accepted, lambda phase, *_: seen.append(phase))
    assert dataset.manifest["counts"]["skipped"] == 2
    assert "pictures" not in seen, "what was scanned before is kept"


def test_one_bad_picture_in_fifty_is_within_the_limits(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", {**classes("Ada", "Ben", count=49), "Ada/x.jpg": b"", "Ben/y.jpg": b""})
    assert prepare([str(folder)], tmp_path / "out").manifest["counts"]["skipped"] == 2


def test_the_same_command_again_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(write(tmp_path / "set", TWO)), "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    before = (tmp_path / "out" / "manifest.json").stat().st_mtime_ns
    assert main(arguments) == 0
    assert "already prepared" in capsys.readouterr().out
    assert (tmp_path / "out" / "manifest.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("change", ["sources", "options"])
def test_another_set_at_the_output_stops_unless_forced(tmp_path: Path, change: str) -> None:
    folder = write(tmp_path / "set", TWO)
    digest = prepare([str(folder)], tmp_path / "out").digest
    if change == "sources":
        write(folder, {"Ada/new.png": picture(321)})
    options = Options(seed=1 if change == "options" else 0)
    with pytest.raises(ConfigError, match="--force"):
        prepare([str(folder)], tmp_path / "out", options)
    assert Dataset.open(tmp_path / "out").digest == digest
    forced = prepare([str(folder)], tmp_path / "out", Options(seed=options.seed, force=True))
    assert forced.digest != digest


def test_a_folder_of_other_files_is_never_replaced(tmp_path: Path) -> None:
    write(tmp_path / "out", {"thesis.txt": b"years of work"})
    with pytest.raises(ConfigError, match="other files"):
        prepare([str(write(tmp_path / "set", TWO))], tmp_path / "out", Options(force=True))
    assert (tmp_path / "out" / "thesis.txt").exists()


def test_an_output_inside_a_source_stops(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", TWO)
    with pytest.raises(ConfigError, match="lies in a source"):
        prepare([str(folder)], folder / "out")


def test_two_prepares_of_one_output_do_not_clash(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", TWO)

    def second(phase: str, done: int, total: int) -> None:
        if phase == "pictures" and done == 1:
            script = "import sys; from artclf.prepare import main; sys.exit(main(sys.argv[1:]))"
            command = [sys.executable, "-c", script, str(folder), "--out", str(tmp_path / "out")]
            clash = subprocess.run(command, capture_output=True, text=True, check=False)
            assert clash.returncode != 0
            assert f"another prepare is at work on it (process {os.getpid()})" in clash.stderr

    prepare([str(folder)], tmp_path / "out", Options(), second)


KILLED = """
import os, sys
from pathlib import Path
from artclf import scan
from artclf.prepare import Options, prepare
scan.COMMIT_EVERY = 8
prepare([sys.argv[1]], Path(sys.argv[2]), Options(),
        lambda phase, done, total: os.kill(os.getpid(), 9) if (phase, done) == ("pictures", 27) else None)
"""


def killed_prepare(folder: Path, out: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(out)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert not out.exists()


def test_a_killed_prepare_goes_on_where_it_stopped(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", classes("Ada", "Ben", count=20))
    whole = prepare([str(folder)], tmp_path / "whole")
    killed_prepare(folder, tmp_path / "out")
    resumed = prepare([str(folder)], tmp_path / "out")
    assert {**resumed.manifest, "recipe": None} == {**whole.manifest, "recipe": None}
    assert [resumed.read(record) for record in range(40)] == [whole.read(record) for record in range(40)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "set", "whole"]


def test_a_killed_prepare_does_only_what_was_not_committed(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", classes("Ada", "Ben", count=20))
    killed_prepare(folder, tmp_path / "out")
    pictures: list[int] = []
    prepare([str(folder)], tmp_path / "out", Options(), lambda p, n, _: pictures.append(n) if p == "pictures" else None)
    assert pictures == list(range(25, 41))


def test_a_killed_prepare_starts_over_when_its_sources_changed(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", classes("Ada", "Ben", count=20))
    killed_prepare(folder, tmp_path / "out")
    write(folder, {"Ada/0.png": picture(4321), "Ben/new.png": picture(4322)})
    dataset = prepare([str(folder)], tmp_path / "out")
    assert dataset.manifest["digest"] == prepare([str(folder)], tmp_path / "fresh").manifest["digest"]
    assert len(dataset) == 41


def test_lost_shards_are_made_again(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", classes("Ada", "Ben", count=20))
    killed_prepare(folder, tmp_path / "out")
    (shard,) = tmp_path.glob(".tmp-prepare-*/data/shards/00000.bin")
    os.truncate(shard, 100)
    assert_sound(prepare([str(folder)], tmp_path / "out"))


def test_the_order_of_sources_makes_no_other_data_set(tmp_path: Path) -> None:
    sources = [
        str(write(tmp_path / name, classes("Ada", "Ben", first_seed=seed))) for name, seed in (("one", 0), ("two", 100))
    ]
    digests = {prepare(order, tmp_path / f"out of {order[0][-3:]}").digest for order in (sources, sources[::-1])}
    assert len(digests) == 1


def test_a_damaged_journal_is_started_over(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", classes("Ada", "Ben", count=20))
    killed_prepare(folder, tmp_path / "out")
    (journal,) = tmp_path.glob(".tmp-prepare-*/journal.sqlite")
    for path in journal.parent.glob("journal.sqlite*"):
        path.write_bytes(b"not a journal at all" * 100)
    assert len(prepare([str(folder)], tmp_path / "out")) == 40


def test_sigterm_ends_with_75_and_a_way_on(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", classes("Ada", "Ben", count=20))

    script = (
        "import os, signal, artclf.scan as scan\n"
        "from artclf.command_line import run_command\n"
        "from artclf.prepare import main\n"
        "judge = scan.judge\n"
        "def slow(file, sources, options):\n"
        "    if file.id == 12: os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return judge(file, sources, options)\n"
        "scan.judge = slow\n"
        "run_command(main)\n"
    )
    command = [sys.executable, "-c", script, str(folder), "--out", str(tmp_path / "out")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (
        75,
        "stopped by SIGTERM: run the same command again and it goes on.\n",
    )
    assert not (tmp_path / "out").exists()
    assert len(prepare([str(folder)], tmp_path / "out")) == 40


def test_stopping_from_the_progress_callback_keeps_every_picture_done(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", TWO)

    def stop(phase: str, done: int, total: int) -> None:
        if (phase, done) == ("pictures", 5):
            raise Interrupted("enough")

    with pytest.raises(Interrupted):
        prepare([str(folder)], tmp_path / "out", Options(), stop)
    pictures: list[int] = []
    prepare([str(folder)], tmp_path / "out", Options(), lambda p, n, _: pictures.append(n) if p == "pictures" else None)
    assert pictures == list(range(6, 13))


def test_a_file_that_goes_away_or_changes_after_the_listing_is_skipped(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", classes("Ada", "Ben", count=60))

    def meddle(phase: str, done: int, total: int) -> None:
        if (phase, done) == ("pictures", 1):
            (folder / "Ben" / "58.png").unlink()
            (folder / "Ben" / "59.png").write_bytes(picture(9)[:100])

    dataset = prepare([str(folder)], tmp_path / "out", Options(), meddle)
    assert dataset.manifest["skipped"] == [
        {"name": "Ben/58.png", "reason": "gone since it was listed"},
        {"name": "Ben/59.png", "reason": "changed since it was listed"},
    ]


def test_equal_pictures_of_several_sources_are_found_and_sources_are_named(tmp_path: Path) -> None:
    first = write(tmp_path / "one", TWO)
    second = write(tmp_path, {"two.zip": archive({**TWO, **classes("Cleo", first_seed=700)})}) / "two.zip"
    dataset = prepare([str(first), str(second)], tmp_path / "out")
    counts = dataset.manifest["counts"]
    assert (counts["found"], counts["used"], counts["duplicates"]) == (30, 18, 12)
    assert dataset.manifest["sources"] == ["one", "two.zip"]
    assert dataset.manifest["duplicates"][0] == {"name": "two.zip/Ada/0.png", "same_as": "one/Ada/0.png"}


def test_a_folder_and_its_zip_make_the_same_data_set(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", TWO)
    packed = write(tmp_path, {"set.zip": archive(dict(reversed(TWO.items())))}) / "set.zip"
    assert prepare([str(folder)], tmp_path / "a").digest == prepare([str(packed)], tmp_path / "b").digest


def test_the_split_is_the_same_in_another_locale(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", classes("Zoë", "ada", "Ben", "Éva"))
    here = prepare([str(folder)], tmp_path / "here")
    command = [sys.executable, "-m", "artclf.prepare", str(folder), "--out", str(tmp_path / "there"), "--quiet"]
    environment = {**os.environ, "LC_ALL": "POSIX", "LANG": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run(command, check=True, env=environment)
    assert Dataset.open(tmp_path / "there").digest == here.digest


def test_names_beginning_with_a_dash_go_after_two_dashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "-set", TWO)
    assert main(["--out", "out", "--quiet", "--", "-set"]) == 0


def test_a_name_of_255_bytes_works(tmp_path: Path) -> None:
    out = tmp_path / ("é" * 127 + "x")
    assert len(prepare([str(write(tmp_path / "set", TWO))], out)) == 12


def test_the_summary_fits_80_columns_and_tells_the_counts(tmp_path: Path) -> None:
    names = [f"An artist of the long name number {number}" for number in range(3)]
    folder = write(tmp_path / "set", {**classes(*names, count=60), f"{names[0]}/bad.jpg": b""})
    text = summary(prepare([str(folder)], tmp_path / "out").manifest)
    assert max(map(len, text.splitlines())) <= 80
    for part in ("181 pictures in 3 classes", "180: train", "1 (empty 1)"):
        assert part in text


def test_progress_without_a_terminal_is_a_line_now_and_then() -> None:
    script = (
        "from artclf.prepare import Display\n"
        "ticks = iter(range(0, 1000, 4))\n"
        "with Display(False, clock=lambda: next(ticks)) as display:\n"
        "    for n in range(10): display.show('pictures', n, 10)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    lines = ended.stderr.splitlines()
    assert 2 <= len(lines) < 10
    assert lines[0].startswith("pictures: ")


def test_on_a_terminal_there_is_a_bar_with_the_time_left(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", classes("Ada", "Ben", count=30))
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "artclf.prepare", str(folder), "--out", str(tmp_path / "out")]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    with subprocess.Popen(command, stderr=theirs, stdout=subprocess.DEVNULL, env=environment) as process:
        os.close(theirs)
        shown = b""
        while chunk := read_terminal(ours):
            shown += chunk
    os.close(ours)
    assert process.returncode == 0
    assert b"pictures" in shown and b"60/60" in shown and b"0:00:0" in shown
    assert b"Traceback" not in shown


def read_terminal(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # Linux says EIO when the other side of a pseudo-terminal is closed
        return b""


def test_wrong_arguments_end_with_2(tmp_path: Path) -> None:
    for arguments in ([], ["x", "--out", "y", "--splits", "a,b"], ["x", "--out", "y", "--max-bad", "1,2,3"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys\nfrom artclf.prepare import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'numpy', 'PIL', 'rich', 'tensorflow', 'pandas'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"


def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path: Path) -> None:
    script = (
        "import resource, sys\nfrom artclf.prepare import main\n"
        "main([sys.argv[1], '--out', sys.argv[2], '--quiet'])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = []
    for count in (100, 800):
        write(tmp_path / f"{count}", classes("Ada", "Ben", count=count))
        command = [sys.executable, "-c", script, str(tmp_path / f"{count}"), str(tmp_path / f"out{count}")]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    assert peaks[1] - peaks[0] < 1400 * 5, "kB; 5 kB a picture would be 5 GB for a million"


@pytest.mark.shared
def test_the_19_broken_files_of_the_real_set_are_skipped_and_no_other(shared_data: Path, tmp_path: Path) -> None:
    manifest = prepare([str(shared_data / "art_types")], tmp_path / "out").manifest
    assert {entry["name"] for entry in manifest["skipped"]} == {
        *(f"painting/{name}.jpg" for name in ("0000", "0125", "0150", "0175", "0200", "0225", "0325", "2050 20.26.31")),
        *(f"sculpture/{name}.jpg" for name in (106, 107, 168, 170, "190 18.59.45", 200, 210, 261, 374)),
        "iconography/69.jpg",
        "iconography/331.jpg",
    }
    assert manifest["counts"]["used"] + manifest["counts"]["duplicates"] == 1507 - 19
    assert manifest["fixed"] == {"alpha": 6, "cmyk": 1, "greyscale": 10, "palette": 1}
