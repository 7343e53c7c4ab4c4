"""The layers: the trainer knows nothing of the launcher, and the launcher stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
LIGHT = {
    "aws",
    "cache",
    "classes",
    "config",
    "datasets",
    "errors",
    "evaluate",
    "interrupt",
    "command_line",
    "locks",
    "records",
    "rundir",
    "s3",
    "storage",
    "strict_yaml",
    "tables",
}
"""The modules of artclf that jobs may know: none of them loads anything heavy."""
PILLOW = {"images"}
"""May be known too, where pictures are shown; loads Pillow and no TensorFlow."""
HEAVY = ("tensorflow", "keras", "boto3", "pandas", "matplotlib", "jinja2", "PIL")


def modules(package: str) -> list[Path]:
    return sorted((PROJECT / package).rglob("*.py"))


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (line, dotted name) of each import of a file, those inside functions too."""
    package = ".".join(path.relative_to(PROJECT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def loaded_by(command: str) -> set[str]:
    """Returns which heavy packages a fresh Python has loaded after some code, run with warnings as errors."""
    code = f"import sys\n{command}\nprint('\\n' + ' '.join(m for m in {HEAVY!r} if m in sys.modules))"
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    return set(ended.stdout.splitlines()[-1].split())


def offences(package: str, forbidden: dict[str, set[str]]) -> list[str]:
    """Returns the imports of a package that name a forbidden one, less its allowed parts."""
    return [
        f"{path.relative_to(PROJECT)}:{line}: {name}"
        for path in modules(package)
        for line, name in imported(path)
        for top, *parts in [name.split(".")]
        if top in forbidden and not (parts and parts[0] in forbidden[top])
    ]


def test_the_trainer_knows_neither_launcher_nor_container() -> None:
    assert len(modules("artclf")) > 10
    assert offences("artclf", {"jobs": set(), "container": set(), "infra": set()}) == []


def test_the_launcher_knows_only_the_light_parts_of_the_trainer() -> None:
    assert len(modules("jobs")) > 1
    assert offences("jobs", {"artclf": LIGHT | PILLOW, "container": set(), "tensorflow": set(), "keras": set()}) == []


def test_the_entry_point_knows_no_launcher() -> None:
    assert offences("container", {"jobs": set(), "tensorflow": set(), "keras": set()}) == []


def test_imports_are_absolute() -> None:
    relative = [
        str(path)
        for package in ("artclf", "jobs", "container")
        for path in modules(package)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative == []


def test_the_light_parts_of_the_trainer_load_nothing_heavy() -> None:
    present = sorted(name for name in LIGHT if (PROJECT / "artclf" / f"{name}.py").exists())
    assert loaded_by("\n".join(f"import artclf.{name}" for name in present)) == set()


def test_decoding_pictures_loads_pillow_and_nothing_else_that_is_heavy() -> None:
    assert loaded_by("\n".join(f"import artclf.{name}" for name in PILLOW)) == {"PIL"}


def test_importing_the_grid_language_loads_nothing_heavy() -> None:
    assert loaded_by("import jobs, jobs.grid") == set()


def test_expanding_a_grid_loads_nothing_heavy() -> None:
    code = "from pathlib import Path\nfrom jobs.grid import *\nexpand(load_grid(Path('grids/demo.yaml')), 'd')"
    assert loaded_by(code) == set()


@pytest.mark.parametrize("arguments", [["--help"], ["plan", "--help"], ["submit", "--help"]])
def test_the_launchers_help_loads_nothing_heavy(arguments: list[str]) -> None:
    run = "import runpy, contextlib\n" + (
        f"sys.argv = ['jobs', *{arguments!r}]\n"
        "with contextlib.suppress(SystemExit):\n    runpy.run_module('jobs', run_name='__main__', alter_sys=True)"
    )
    assert loaded_by(run) == set()
