"""One writer at a time, seen by real processes."""

import errno
import fcntl
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kamim_analysis import lock
from kamim_analysis.errors import UserError
from kamim_analysis.lock import LOCK, locked

#: holds the directory until it is killed, with a child that lives on, as data workers do for some seconds
HOLD = """
import os, sys, time
from pathlib import Path
from kamim_analysis.lock import locked
with locked(Path(sys.argv[1])):
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(120)
"""
#: adds one to a number in a file, many times, each time under the lock; a lost update shows two writers
COUNT = """
import sys
from pathlib import Path
from kamim_analysis.errors import UserError
from kamim_analysis.lock import locked
done = 0
while done < 20:
    try:
        with locked(Path(sys.argv[1])):
            file = Path(sys.argv[2])
            file.write_text(str(int(file.read_text()) + 1))
            done += 1
    except UserError:
        pass
"""
TRY = """
import sys
from pathlib import Path
from kamim_analysis.lock import locked
with locked(Path(sys.argv[1])):
    pass
"""


def start(program: str, *arguments: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def enter(directory: Path) -> None:
    with locked(directory):
        pass


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """The ids of a process that holds tmp_path / "run", and of its child."""
    process = start(HOLD, tmp_path / "run")
    assert process.stdout is not None
    child = int(process.stdout.readline())
    yield process.pid, child
    process.kill()
    os.kill(child, 9)
    process.communicate()


def test_a_second_writer_is_told_of_the_first(tmp_path: Path, holder: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=f"'{tmp_path / 'run'}' is being written by pid {holder[0]} on ") as told:
        enter(tmp_path / "run")
    assert socket.gethostname() in str(told.value)
    assert time.strftime("since %Y-") in str(told.value)
    assert "\n" not in str(told.value)
    assert (tmp_path / "run" / LOCK).exists()


def test_a_killed_writer_holds_nothing_even_while_its_child_lives(tmp_path: Path, holder: tuple[int, int]) -> None:
    writer, child = holder
    os.kill(writer, 9)
    deadline = time.monotonic() + 60
    while True:  # until the kernel has cleared up after it
        try:
            with locked(tmp_path / "run"):
                assert f"pid {os.getpid()} on " in (tmp_path / "run" / LOCK).read_text()
                os.kill(child, 0)
            break
        except UserError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_writers_that_come_and_go_are_one_at_a_time(tmp_path: Path) -> None:
    number = tmp_path / "number"
    number.write_text("0")
    processes = [start(COUNT, tmp_path / "run", number) for _ in range(3)]
    for process in processes:
        assert process.wait(timeout=120) == 0, process.communicate()[1]
        process.communicate()
    assert number.read_text() == "60"


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    with locked(tmp_path / "deep" / "run"):
        assert [path.name for path in (tmp_path / "deep" / "run").iterdir()] == [LOCK]
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "deep" / "run"):
        (tmp_path / "deep" / "run" / "kept").touch()
    assert [path.name for path in (tmp_path / "deep" / "run").iterdir()] == ["kept"]


def test_a_directory_that_was_there_stays(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run"):
        pass
    assert list((tmp_path / "run").iterdir()) == []


def test_the_process_itself_is_refused_and_keeps_its_lock(tmp_path: Path) -> None:
    with locked(tmp_path):
        with pytest.raises(UserError, match="by this very process"):
            enter(tmp_path / ".." / tmp_path.name)
        other = start(TRY, tmp_path)
        assert f"is being written by pid {os.getpid()} on" in other.communicate()[1]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write '.*file/run': Not a directory"):
        enter(tmp_path / "file" / "run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_directory_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o555)
    with pytest.raises(UserError, match=r"cannot write '.*run': Permission denied"):
        enter(tmp_path / "run")


def test_a_file_system_without_locks_is_told_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_descriptor: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with locked(tmp_path):
        assert "cannot be locked (No locks available)" in caplog.text
        assert (tmp_path / LOCK).exists()
    assert lock._held == set()
