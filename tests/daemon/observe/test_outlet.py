"""Lines on their way out: a reader that stands still holds up nobody, and what is lost is told."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gossipseg.daemon.observe import logs
from gossipseg.daemon.observe.outlet import Outlet, RotatingFile, write_to


class Reader:
    """Takes lines while it is let; `taken` holds them."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.reading, self.stands, self.took = threading.Event(), threading.Event(), threading.Event()
        self.failure: OSError | None = None
        self.reading.set()

    def __call__(self, line: bytes) -> None:
        if not self.reading.is_set():
            self.stands.set()
            assert self.reading.wait(30)
        if self.failure is not None:
            raise self.failure
        self.taken.append(line)
        self.took.set()


def gap(n: int) -> bytes:
    return b"lost %d" % n


@pytest.fixture
def reader() -> Iterator[Reader]:
    made = Reader()
    yield made
    made.reading.set()


def test_lines_come_out_in_order(reader: Reader) -> None:
    outlet = Outlet("x", reader, gap)
    for n in range(100):
        outlet.put(b"%d" % n)
    assert outlet.flush(30) and reader.taken == [b"%d" % n for n in range(100)]
    assert outlet.lost == 0 and outlet.problem() == ""
    outlet.close(1)
    outlet.put(b"late")
    assert outlet.lost == 1


def test_a_reader_that_stands_still_costs_lines_and_no_time(reader: Reader) -> None:
    now = 0.0
    outlet = Outlet("standard error", reader, gap, max_waiting_bytes=10, clock=lambda: now)
    reader.reading.clear()
    outlet.put(b"first")
    assert reader.stands.wait(30)
    for n in range(1000):
        outlet.put(b"a%03d" % n)  # two of them fit
    assert outlet.lost == 998
    now = 4.0
    assert outlet.problem() == ""
    now = 9.0
    assert (
        "standard error takes no log line for 9 s" in outlet.problem() and "998 log lines" in outlet.problem()
    )
    reader.reading.set()
    assert outlet.flush(30)
    outlet.put(b"again")
    assert outlet.flush(30)
    assert reader.taken == [b"first", b"a000", b"a001", b"lost 998", b"again"]
    assert outlet.problem() == "" and outlet.lost == 998


def test_what_cannot_be_written_is_told_and_tried_again(reader: Reader) -> None:
    reader.failure = BrokenPipeError(errno.EPIPE, "Broken pipe")
    outlet = Outlet("standard error", reader, gap)
    for _ in range(3):
        outlet.put(b"x")
    assert outlet.flush(30)
    assert outlet.lost == 3 and "cannot be written to standard error: Broken pipe" in outlet.problem()
    reader.failure = None
    outlet.put(b"y")
    assert outlet.flush(30)
    outlet.put(b"z")
    assert outlet.flush(30)
    assert sorted(reader.taken) == [b"lost 3", b"y", b"z"] and outlet.problem() == ""


def test_it_is_tried_again_where_nothing_new_is_logged(reader: Reader) -> None:
    """A disk that was full for a moment is told as full until the next line, which may be days away."""
    reader.failure = OSError(errno.ENOSPC, "No space left on device")
    outlet = Outlet("log.file", reader, gap, retry_s=0.01)
    outlet.put(b"x")
    assert outlet.flush(30) and "No space left" in outlet.problem()
    reader.failure = None
    assert reader.took.wait(30) and outlet.flush(30)
    assert outlet.problem() == "" and reader.taken == [b"lost 1"] and outlet.lost == 1


def test_a_closed_one_does_not_stay_for_what_failed(reader: Reader) -> None:
    reader.failure = OSError(errno.ENOSPC, "No space left on device")
    before = threading.enumerate()
    outlet = Outlet("log.file", reader, gap, retry_s=300)
    outlet.put(b"x")
    (writer,) = [t for t in threading.enumerate() if t not in before]
    outlet.close(30)
    writer.join(30)
    assert not writer.is_alive()


def test_a_pipe_that_does_not_block_loses_nothing() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    line = b"y" * (1 << 20)  # far more than fits
    thread = threading.Thread(target=write_to(writing), args=(line,))
    thread.start()
    got = 0
    while got < len(line):
        got += len(os.read(reading, 1 << 16))
    thread.join(30)
    os.close(reading)
    os.close(writing)
    assert got == len(line) and not thread.is_alive()


def test_the_end_does_not_wait_for_a_reader(reader: Reader) -> None:
    reader.reading.clear()
    outlet = Outlet("x", reader, gap)
    outlet.put(b"never read")
    outlet.close(0.0)
    assert not outlet.flush(0.0)


# ---------------------------------------------------------------- a file


def test_a_file_is_begun_anew_and_so_many_are_kept(tmp_path: Path) -> None:
    file = RotatingFile(tmp_path / "logs" / "site.log", 10, 3)
    for n in range(9):
        file.write(b"line%d\n" % n)
    found = {p.name: p.read_text() for p in (tmp_path / "logs").iterdir()}
    assert found == {"site.log": "line8\n", "site.log.1": "line7\n", "site.log.2": "line6\n"}
    assert (tmp_path / "logs" / "site.log").stat().st_mode & 0o777 == 0o600
    file.close()


def test_a_single_file_is_emptied(tmp_path: Path) -> None:
    file = RotatingFile(tmp_path / "site.log", 10, 1)
    for n in range(4):
        file.write(b"line%d\n" % n)
    assert [p.name for p in tmp_path.iterdir()] == ["site.log"]
    assert (tmp_path / "site.log").read_text() == "line3\n"
    file.close()


def test_a_file_that_was_moved_or_removed_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "site.log"
    file = RotatingFile(path, 1000, 2)
    file.write(b"one\n")
    path.rename(tmp_path / "moved")
    file.write(b"two\n")
    path.unlink()
    file.write(b"three\n")
    file.close()
    again = RotatingFile(path, 1000, 2)
    again.write(b"four\n")
    again.close()
    assert (path.read_text(), (tmp_path / "moved").read_text()) == ("three\nfour\n", "one\n")


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = tmp_path / "site.log", os.write
    file = RotatingFile(path, 1000, 2)
    file.write(b"one\n")
    room = iter([2])

    def write(fd: int, data: bytes) -> int:
        for left in room:
            return real(fd, data[:left])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(os, "write", write)
        file.write(b"two\n")
    file.write(b"three\n")
    file.close()
    assert path.read_text() == "one\nthree\n"


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "large" / "site.log", tmp_path / "site.log"
    target.parent.mkdir()
    link.symlink_to(target)
    file = RotatingFile(link, 10, 2)
    for n in range(3):
        file.write(b"line%d\n" % n)
    file.close()
    assert link.is_symlink() and sorted(p.name for p in tmp_path.iterdir()) == ["large", "site.log"]
    assert (link.read_text(), (target.parent / "site.log.1").read_text()) == ("line2\n", "line1\n")


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_plain_file_is_refused_and_not_renamed(tmp_path: Path, kind: str) -> None:
    """A pipe without a reader is waited for; to rotate /dev/null is to rename it."""
    path = tmp_path / "site.log"
    if kind == "pipe":
        os.mkfifo(path)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    else:
        path.symlink_to("/dev/null")
        reader = os.open(path, os.O_RDONLY)
    with pytest.raises(OSError, match="no plain file"):
        RotatingFile(path, 10, 2)
    os.close(reader)
    if kind == "pipe":  # nobody reads it
        with pytest.raises(OSError, match="No such device"):
            RotatingFile(path, 10, 2)


def test_a_file_that_was_cut_short_is_written_on_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "site.log", os.write
    file = RotatingFile(path, 1000, 2)
    file.write(b"one\n" * 100)
    os.truncate(path, 0)  # logrotate's copytruncate
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(os, "write", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space")))
        file.write(b"two\n")
    monkeypatch.setattr(os, "write", real)
    file.write(b"three\n")
    file.close()
    assert path.read_bytes() == b"three\n"


# ---------------------------------------------------------------- all of it, on a real pipe

DAEMON = """
import logging, os, sys, threading, warnings
from gossipseg.daemon.observe import logs
logs.setup("text", "info"); logs.capture_stderr()
for n in range(40_000):
    logging.getLogger("x").info("%s", "y" * 40)
print("printed", file=sys.stderr); warnings.warn("warned"); sys.stderr.flush()
print(logs.lost() > 1000)
logs.close(0.2)
print("closed")
"""


def test_a_pipe_that_nobody_reads_does_not_stop_the_process() -> None:
    nobody, end = os.pipe()
    try:
        child = subprocess.run(
            [sys.executable, "-c", DAEMON],
            stderr=end,
            stdout=subprocess.PIPE,
            text=True,
            timeout=60,
            check=True,
        )
    finally:
        os.close(nobody)
        os.close(end)
    assert child.stdout.split() == ["True", "closed"], "what waits for the pipe never ends"


SPOKEN = """
import logging, sys
from gossipseg.daemon.observe import logs
logs.hold()
logging.getLogger("gossipseg.config").warning("before the configuration")
logging.getLogger("other").info("so was this")
from gossipseg.daemon.observe.outlet import RotatingFile
from pathlib import Path
logs.setup("json", "warning", RotatingFile(Path(sys.argv[1]), 10_000, 2)); logs.capture_stderr()
print("by a library", end="", file=sys.stderr); print(" in pieces", file=sys.stderr)
logging.getLogger("x").error("last")
logs.say("gossipsegd: the end")
print("half a line", end="", file=sys.stderr)
logs.close()
print("plain", file=sys.stderr)
"""


def test_everything_goes_out_in_order_and_to_the_file(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SPOKEN, tmp_path / "site.log"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    first, library, last, end, half, plain = done.stderr.splitlines()
    assert json.loads(first)["message"] == "before the configuration"
    assert (library, end) == ("by a library in pieces", "gossipsegd: the end")
    assert (half, plain) == ("half a line", "plain")
    assert json.loads(last)["level"] == "error"
    kept = [json.loads(line) for line in (tmp_path / "site.log").read_text().splitlines()]
    assert [line["message"] for line in kept] == [json.loads(first)["message"], library, "last", end, half]


class FullAtFirst(RotatingFile):
    """On a disk that has room from the eighth line on."""

    refused = 0

    def write(self, line: bytes) -> None:
        if self.refused < 7:
            self.refused += 1
            raise OSError(errno.ENOSPC, "No space left on device")
        super().write(line)


def test_lost_lines_are_a_line_of_their_own(tmp_path: Path) -> None:
    file = FullAtFirst(tmp_path / "site.log", 1 << 20, 2)
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        logs.setup("json", "warning", file)
        for word in [*["lost"] * 7, "kept"]:
            root.warning(word)
        logs.close(30)
    finally:
        root.handlers[:], root.level = before
        file.close()
    kept, doc = map(json.loads, (tmp_path / "site.log").read_text().splitlines())
    assert kept["message"] == "kept"
    assert (doc["event"], doc["level"], doc["lines"]) == ("log_lines_lost", "warning", 7)
    assert "7 log lines before this one are lost" in doc["message"]
