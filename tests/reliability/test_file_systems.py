"""File systems that lack a call, and disks that are not there any more."""

import errno
import fcntl
import os
import stat

import pytest

from utils.errors import UserError
from utils.files import FolderLock, atomic_write, waiting_lock, write_text
from utils.logger import RunLog


def failing(number: int, when=lambda *arguments: True, otherwise=None):
    """A stand-in for a system call that fails with `number`, as `when` says."""

    def call(*arguments, **named):
        if when(*arguments):
            raise OSError(number, os.strerror(number))
        return otherwise(*arguments, **named)

    return call


def is_folder(descriptor) -> bool:
    return stat.S_ISDIR(os.fstat(descriptor).st_mode)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EBADF])
def test_folders_that_cannot_be_synced_are_not(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "fsync", failing(number, is_folder, os.fsync))
    write_text(tmp_path / "a.txt", "whole")
    assert (tmp_path / "a.txt").read_text() == "whole"


def test_a_folder_that_cannot_be_synced_because_its_disk_is_gone_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", failing(errno.EIO, is_folder, os.fsync))
    with pytest.raises(UserError, match="see that its disk or share is there"):
        write_text(tmp_path / "a.txt", "whole")


def test_shares_without_rights_of_their_own_are_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "chmod", failing(errno.EPERM))
    write_text(tmp_path / "a.txt", "whole")
    assert os.listdir(tmp_path) == ["a.txt"]


def test_without_locks_the_cache_is_made_all_the_same_and_a_run_says_what_to_do(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(fcntl, "flock", failing(errno.ENOLCK))
    with waiting_lock(tmp_path / "images.lock"):
        pass
    with pytest.raises(UserError, match=r"cannot be locked for this run .*--run_dir"):
        FolderLock(tmp_path / "run")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EROFS, "Read-only file system; make it writable, then go on"),
        (errno.EACCES, "Permission denied; make it writable"),
        (errno.ESTALE, "see that its disk or share is there"),
        (errno.EMFILE, r"Too many open files; .*ulimit -n"),
    ],
)
def test_a_disk_that_takes_no_file_is_one_line(tmp_path, monkeypatch, number, words):
    monkeypatch.setattr("tempfile.mkstemp", failing(number))
    with pytest.raises(UserError, match=words) as caught, atomic_write(tmp_path / "a.txt"):
        pass
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_log_that_is_removed_meanwhile_is_begun_anew_and_says_so(tmp_path):
    log = RunLog()
    try:
        log.open(tmp_path / "log.txt", ["first"])
        (tmp_path / "log.txt").unlink()
        log.record("second")
    finally:
        log.close()
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert "moved or removed meanwhile" in lines[0] and lines[1].endswith("second")
