"""The one way in which files are written: whole or not at all, and never in place of a link or a device."""

import errno
import os
import stat
import threading
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure
from safetensors import SafetensorError

import flowlab
from flowlab.report.figures import save_figure
from flowlab.tables.frames.read_write import write_table
from flowlab.tables.schema import Schema
from flowlab.writing import check_writable, written_whole

FRAME = pd.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"]})
WRITERS = {
    "model": (".flow", lambda path: flowlab.save(flowlab.bases.Gaussian(2), path)),
    "csv": (".csv", lambda path: write_table(FRAME, path)),
    "parquet": (".parquet", lambda path: write_table(FRAME, path)),
    "schema": (".json", lambda path: Schema.infer(FRAME).save(path)),
    "picture": (".png", lambda path: save_figure(Figure(), path)),
}
EVERY_WRITER = pytest.mark.parametrize("writer", WRITERS)
NOT_ROOT = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everything")


def written(path, content: bytes = b"new") -> None:
    with written_whole(path) as temporary:
        temporary.write_bytes(content)


@EVERY_WRITER
def test_links_stay_links_and_modes_stay(writer, tmp_path):
    suffix, write = WRITERS[writer]
    real, link = tmp_path / f"real{suffix}", tmp_path / f"link{suffix}"
    real.write_bytes(b"old")
    real.chmod(0o600)
    link.symlink_to(real.name)
    write(link)
    assert link.is_symlink()
    assert real.read_bytes() != b"old"
    assert stat.S_IMODE(real.stat().st_mode) == 0o600
    assert sorted(tmp_path.iterdir()) == [link, real]


@EVERY_WRITER
def test_an_error_names_the_users_file_and_leaves_nothing(writer, tmp_path):
    suffix, write = WRITERS[writer]
    folder = tmp_path / f"folder{suffix}"
    folder.mkdir()
    for path, error in (
        (folder, IsADirectoryError),
        (tmp_path / f"{'n' * 300}{suffix}", OSError),
        (tmp_path / "none" / f"m{suffix}", FileNotFoundError),
        (folder / "x" / f"m{suffix}", FileNotFoundError),
    ):
        with pytest.raises(error) as caught:
            write(path)
        assert str(path) in str(caught.value)
    assert list(tmp_path.rglob("*")) == [folder]


@pytest.mark.parametrize("way", [check_writable, written])
def test_names_that_are_none(way, tmp_path):
    for name in ("", "a\0b"):
        with pytest.raises(ValueError, match="no name of a file"):
            way(name)
    for name in (".", f"{tmp_path}/", f"{tmp_path}/new/"):
        with pytest.raises(OSError, match="folder"):
            way(name)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file/m"):
        way(tmp_path / "file" / "m.flow")
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="lead nowhere") as caught:
        way(tmp_path / "a")
    assert caught.value.errno == errno.ELOOP


def test_checking_changes_nothing(tmp_path):
    there, dangling = tmp_path / "there.flow", tmp_path / "dangling.flow"
    there.write_bytes(b"old")
    dangling.symlink_to("later.flow")
    for path in (there, tmp_path / "new.flow", dangling, tmp_path / ("n" * 255), "/dev/null", os.fsencode(there)):
        check_writable(path)
    assert there.read_bytes() == b"old"
    assert sorted(tmp_path.iterdir()) == [dangling, there]
    written(dangling)
    assert dangling.is_symlink()
    assert (tmp_path / "later.flow").read_bytes() == b"new"


def test_new_files_have_the_mode_of_any_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        written(tmp_path / "m.flow")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "m.flow").stat().st_mode) == 0o640


@NOT_ROOT
def test_what_may_not_be_written_is_said_before(tmp_path):
    path = tmp_path / "m.flow"
    path.write_bytes(b"old")
    path.chmod(0o444)
    with pytest.raises(PermissionError, match=r"m\.flow"):
        check_writable(path)
    (tmp_path / "closed").mkdir(mode=0o555)
    with pytest.raises(PermissionError, match=r"closed/m\.flow"):
        check_writable(tmp_path / "closed" / "m.flow")


def test_pipes_and_devices_get_the_bytes(tmp_path):
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    check_writable(pipe)
    write_table(FRAME, pipe)
    reader.join()
    assert got == [b"a,b\n1.0,x\n2.0,y\n"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    flowlab.save(flowlab.bases.Gaussian(2), "/dev/null")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    if Path("/dev/full").exists():
        with pytest.raises(OSError, match="/dev/full") as caught:
            flowlab.save(flowlab.bases.Gaussian(2), "/dev/full")
        assert caught.value.errno == errno.ENOSPC
        assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)


@pytest.mark.parametrize("mode", ["wb", "ab"])
def test_an_open_file_by_its_number_is_written_behind_what_is_there(tmp_path, mode):
    with open(tmp_path / "out", mode) as out:
        out.write(b"before, ")
        out.flush()
        written(f"/dev/fd/{out.fileno()}")
    assert (tmp_path / "out").read_bytes() == b"before, new"


def test_a_full_disk_names_the_file_and_keeps_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "m.flow"
    path.write_bytes(b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device.*m\.flow") as caught:
        flowlab.save(flowlab.bases.Gaussian(2), path)
    assert ".flowlab-" not in str(caught.value)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_errors_of_the_block_pass_and_leave_nothing(tmp_path):
    with pytest.raises(TypeError), written_whole(tmp_path / "m.flow") as temporary:
        temporary.write_bytes(b"half" + None)
    with pytest.raises(FileNotFoundError, match="another") as caught, written_whole(tmp_path / "m.flow"):
        Path(tmp_path / "another").read_bytes()
    assert "m.flow" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_what_the_format_cannot_hold_is_an_error_of_ours(tmp_path, monkeypatch):
    def refuse(*_):
        raise SafetensorError("header too large")

    monkeypatch.setattr("flowlab.files.serialized", refuse)
    with pytest.raises(flowlab.FileError, match=r"m\.flow cannot be written: header too large"):
        flowlab.save(flowlab.bases.Gaussian(2), tmp_path / "m.flow")
    assert list(tmp_path.iterdir()) == []


def test_a_name_is_on_the_disk_with_its_folder(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync

    def watched(number):
        synced.append(stat.S_ISDIR(os.fstat(number).st_mode))
        fsync(number)

    monkeypatch.setattr(os, "fsync", watched)
    with written_whole(tmp_path / "m.flow") as temporary:
        temporary.write_bytes(b"rows")
    assert synced == [False, True]
