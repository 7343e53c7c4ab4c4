"""What a container packed of its run, sound and hostile: S17 of the bad inputs."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from artclf.config import TrainConfig
from artclf.rundir import RunDir, RunStatus
from jobs import model_archive
from jobs.model_archive import take_model
from jobs.spec import BackendError

Entry = tuple[str | tarfile.TarInfo, bytes]


def entry(name: str, **fields: Any) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(made, field, value)
    return made


def pack(path: Path, entries: list[Entry]) -> Path:
    """Writes a model.tar.gz of any entries."""
    with tarfile.open(path, "w:gz") as archive:
        for what, content in entries:
            member = entry(what) if isinstance(what, str) else what
            if isinstance(what, str):
                member.size = len(content)
            archive.addfile(member, io.BytesIO(content) if content else None)  # without one a size is only said
    return path


def name_of(item: Entry) -> str:
    return item[0] if isinstance(item[0], str) else item[0].name


def finished() -> list[Entry]:
    """Returns what the SDK packs of a finished run."""
    names = [f"evaluation/{name}" for name in ("val.json", "test.json", "predictions_val.csv", "predictions_test.csv")]
    folder: Entry = (entry("evaluation", type=tarfile.DIRTYPE), b"")
    status = json.dumps({"state": "done", "epoch": 3}).encode()
    files = [("model.keras", b"weights"), ("model.json", b'{"settings": {}}'), ("environment.json", b"{}")]
    texts = [("metrics.jsonl", b"{}\n"), ("log.txt", b"done in 1 s"), ("status.json", status)]
    return [folder, *((name, b"x") for name in names), *files, *texts]


def test_what_a_finished_run_left_is_put_into_its_directory(run: RunDir, tmp_path: Path) -> None:
    take_model(pack(tmp_path / "model.tar.gz", finished()), tmp_path / "unpacked", run)
    assert run.is_complete() and run.log.read_text() == "done in 1 s"
    assert run.read_status() == RunStatus("done", epoch=3)
    assert json.loads(run.model_json.read_text())["settings"] == TrainConfig().model_dump(mode="json")


BIG = 9 * 2**30
LINK = {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ([("../config.json", b"{}")], "no file of that name"),
        ([("/tmp/config.json", b"{}")], "no file of that name"),
        ([("evaluation/../config.json", b"{}")], "no file of that name"),
        ([("config.json", b"{}")], "no file of that name"),
        ([("evaluation/.lock", b"")], "no file of that name"),
        ([("evaluation/model.tar.gz", b"x")], "no file of that name"),
        ([(entry("log.txt", **LINK), b"")], "no regular file"),
        ([(entry("evaluation", **LINK), b""), ("evaluation/a.json", b"")], "no regular file"),
        ([(entry("log.txt", type=tarfile.LNKTYPE, linkname="model.keras"), b"")], "no regular file"),
        ([(entry("log.txt", type=tarfile.CHRTYPE, devmajor=1, devminor=3), b"")], "no regular file"),
        ([(entry("log.txt", type=tarfile.FIFOTYPE), b"")], "no regular file"),
        ([(entry("model.keras", type=tarfile.DIRTYPE), b"")], "no such folder"),
        ([("log.txt", b"once"), ("log.txt", b"twice")], "comes twice"),
        ([(entry("model.keras", size=BIG), b"")], "8,589,934,592 bytes are not accepted"),
        ([(f"evaluation/a{number}.json", b"") for number in range(1001)], "more than 1,000 entries"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_s17_an_archive_with_one_hostile_entry_changes_nothing(
    run: RunDir, tmp_path: Path, added: list[Entry], said: str
) -> None:
    names = {name_of(item) for item in added}
    sound = [item for item in finished() if name_of(item) not in names]
    refused(run, pack(tmp_path / "model.tar.gz", [*sound, *added]), said)


def refused(run: RunDir, archive: Path, said: str) -> None:
    """Asserts that an archive is refused, and that nothing of it is in the run directory or beside it."""

    def files() -> dict[Path, bytes]:
        beside = [path for path in archive.parent.rglob("*") if path.is_file() and "unpacked" not in path.parts]
        return {path: path.read_bytes() for path in beside}

    before = files()
    with pytest.raises(BackendError, match=said):
        take_model(archive, archive.parent / "unpacked", run)
    assert files() == before


def test_s17_a_truncated_archive_changes_nothing_wherever_it_is_cut(run: RunDir, tmp_path: Path) -> None:
    archive = pack(tmp_path / "model.tar.gz", [("log.txt", os.urandom(5000)), *finished()])
    content = archive.read_bytes()
    for length in range(0, len(content) - 1, len(content) // 40):
        archive.write_bytes(content[:length])
        shutil.rmtree(tmp_path / "unpacked", ignore_errors=True)
        refused(run, archive, "model.tar.gz: ")


NO_ARCHIVES = [b"", b"PK\3\4", gzip.compress(b"", mtime=0), gzip.compress(b"\0" * 1024, mtime=0), b"\x1f\x8b\x08"]


@pytest.mark.parametrize("content", NO_ARCHIVES, ids=range(len(NO_ARCHIVES)))
def test_s17_what_is_no_archive_or_an_empty_one_is_refused(run: RunDir, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.tar.gz").write_bytes(content)
    refused(run, tmp_path / "model.tar.gz", "model.tar.gz: ")


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_s17_a_bomb_is_refused_before_it_fills_disk_or_memory(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: bytes
) -> None:
    monkeypatch.setattr(model_archive, "FREE_BYTES", 2**20)
    with gzip.open(tmp_path / "model.tar.gz", "wb", compresslevel=9) as archive:
        archive.write(entry("model.keras", size=2**26, type=kind).tobuf())
        archive.writelines([b"\0" * 2**20] * 64)
    refused(run, tmp_path / "model.tar.gz", "would unpack to more than 200 times as many")
    unpacked = tmp_path / "unpacked" / "model.keras"
    assert not unpacked.exists() or unpacked.stat().st_size <= 2**24
