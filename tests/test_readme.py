"""The README's commands do what it says, in its order."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[1]
README = (PROJECT / "README.md").read_text(encoding="utf-8")
LINES = [line.split(" #")[0].split("   #")[0].strip() for block in re.findall(r"```sh\n(.*?)```", README, re.S)
         for line in block.splitlines()]  # fmt: skip


@pytest.mark.parametrize("line", [line for line in LINES if re.match(r"(\w+=\S+ )*make ", line)])
def test_every_make_line_names_a_target_and_a_grid_that_exist(line: str) -> None:
    answer = subprocess.run(["env", *shlex.split(line), "-n"], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    for grid in re.findall(r"GRID=(\S+)", line):
        assert (PROJECT / grid).is_file()


def test_the_python_lines_run_one_after_the_other(tiny_pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "artists.csv").write_text("name,years\nacross,1900\n")
    for line in (line for line in LINES if line.startswith("python ")):
        runs = [str(path.relative_to(tmp_path)) for path in tmp_path.glob("studies/single/runs/*")]
        stand_ins = {
            "OTHER_PICTURES": str(tiny_pictures),
            "PICTURES": str(tiny_pictures),
            "studies/single/runs/ID": runs[0] if runs else "",
            "painting.jpg": str(tiny_pictures / "down" / "down_1.png"),
            "https://example.org/another.jpg": str(tiny_pictures / "across" / "across_1.png"),
            "model.weights=imagenet": "model.weights=none",  # there is no network here
        }
        small = " --set data.image_size=32 --set train.epochs=1" if "artclf.train" in line else ""
        for word, stand_in in stand_ins.items():
            line = re.sub(rf"(?<![\w/]){re.escape(word)}(?!\w)", stand_in, line)  # noqa: PLW2901
        command = [sys.executable, *shlex.split(line + small)[1:]]
        environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
        answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert answer.returncode == 0, f"{line}\n{answer.stdout}{answer.stderr}"


def test_the_grid_in_the_readme_is_a_grid(tmp_path: Path) -> None:
    from jobs.grid import expand, load_grid

    _, text = re.findall(r"```yaml\n(.*?)```", README, re.S)
    assert yaml.safe_load(text)["study"] == "artists"
    (tmp_path / "artists.yaml").write_text(text)
    assert len(expand(load_grid(tmp_path / "artists.yaml"), "digest").trials) == 6


def test_the_cloud_yaml_in_the_readme_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs.grid import Resources
    from jobs.settings import load_cloud_settings

    text, _ = re.findall(r"```yaml\n(.*?)```", README, re.S)
    (tmp_path / "cloud.yaml").write_text(text.replace("# image:", "image:").replace("…    unless", "0  # unless"))
    monkeypatch.setenv("ARTCLF_CLOUD", str(tmp_path / "cloud.yaml"))
    assert load_cloud_settings().region == "eu-central-1"
    (told,) = re.findall(r"resources: (\{.*?\})` \(these are the defaults\)", README)
    assert Resources(**yaml.safe_load(told)) == Resources()


def test_every_path_the_readme_names_is_there() -> None:
    for path in re.findall(r"`((?:artclf|jobs|container|grids|tests|bench)/[\w./]*)`", README):
        assert (PROJECT / path).exists(), path
