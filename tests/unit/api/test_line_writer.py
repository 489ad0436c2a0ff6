"""Lines for a stream that may be gone, full, or read by nobody: who writes them never waits."""

import errno
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from api.settings import Settings
from api.telemetry.line_writer import Backlog, LineWriter
from api.telemetry.logs import configure

PATIENCE_S = 30.0


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    for end in (reading, writing):
        try:
            os.close(end)
        except OSError as error:  # a test closed it
            assert error.errno == errno.EBADF


def test_p8_a_backlog_is_bounded_and_counts_what_it_loses() -> None:
    backlog = Backlog(lines_max=2, bytes_max=10)
    for line in (b"one\n", b"two\n", b"six\n"):
        backlog.put(line)
    assert (len(backlog), backlog.lost) == (2, 1)
    assert backlog.take() == b"one\n"
    backlog.put(b"too long\n")  # there is a place, but no room
    assert backlog.lost == 2
    backlog.put(b"three\n")
    assert [backlog.take(), backlog.take()] == [b"two\n", b"three\n"]
    backlog.put(b"ten bytes\n")
    assert (len(backlog), backlog.lost) == (1, 2)


def test_lines_come_whole_and_in_order(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    writer = LineWriter(writing)
    for number in range(100):
        writer.write(f"line {number} with a \udcff that no encoding takes\n")
    writer.finish(PATIENCE_S)
    lines = os.read(reading, 1 << 20).splitlines()
    assert len(lines) == 100
    assert lines[7] == rb"line 7 with a \udcff that no encoding takes"
    assert writer.lost == 0


def test_p8_nobody_waits_for_a_stream_that_nobody_reads(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    writer = LineWriter(writing)
    line = "x" * 999 + "\n"
    for _ in range(10_000):  # more than the pipe and the backlog take
        writer.write(line)
    assert writer.lost > 1_000
    before = writer.lost
    writer.finish(within_s=0.1)  # nobody reads at the end either
    writer.write(line)
    assert writer.lost == before + 1
    os.close(reading)  # the thread ends


def test_lines_go_on_when_somebody_reads_again(tmp_path: Path) -> None:
    fifo = tmp_path / "log"
    os.mkfifo(fifo)
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    writing = os.open(fifo, os.O_WRONLY)
    writer = LineWriter(writing)
    os.close(reading)
    writer.write("for nobody\n")
    until_s = time.monotonic() + PATIENCE_S
    while writer.lost < 1 and time.monotonic() < until_s:
        time.sleep(0.001)
    assert writer.lost == 1
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    writer.write("for somebody\n")
    writer.finish(PATIENCE_S)
    assert os.read(reading, 1000) == b"for somebody\n"
    assert writer.lost == 1
    for end in (reading, writing):
        os.close(end)


def test_a_stream_that_was_made_non_blocking_gets_every_line(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.set_blocking(writing, False)
    writer = LineWriter(writing)
    expected = "".join(f"{number:99}\n" for number in range(5_000))
    for line in expected.splitlines(keepends=True):
        writer.write(line)
    got = b""
    while len(got) < len(expected):
        got += os.read(reading, 1 << 16)
    assert got == expected.encode()
    assert writer.lost == 0


@pytest.mark.parametrize("broken", ["full", "closed", "never there"])
def test_a_stream_that_takes_nothing_costs_its_lines(broken: str, pipe: tuple[int, int]) -> None:
    descriptor: int | None = os.open("/dev/full", os.O_WRONLY)
    if broken != "full":
        assert descriptor is not None
        os.close(descriptor)
    if broken == "never there":
        descriptor = None
    writer = LineWriter(descriptor)
    for _ in range(3):
        writer.write("lost\n")
    writer.finish(PATIENCE_S)
    assert writer.lost == 3


def test_a_finalizer_may_log_while_its_thread_does(pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1])

    def within() -> None:
        with writer._some:  # as if interrupted there
            writer.write("from a finalizer\n")

    thread = threading.Thread(target=within, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    writer.finish(PATIENCE_S)
    assert os.read(pipe[0], 1000) == b"from a finalizer\n"


def test_a_log_call_of_a_library_that_fails_raises_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    with (tmp_path / "stderr").open("w+") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        try:
            writer = configure(Settings(database_url="postgresql://x/x", auth_secret="x" * 32))
            logging.getLogger("library").warning("%d of them", "no number")
            writer.finish(PATIENCE_S)
        finally:
            root.handlers[:] = before
            root.setLevel(level)
            structlog.reset_defaults()
    lines = (tmp_path / "stderr").read_text().splitlines()
    assert len(lines) == 1
    assert '"log call failed"' in lines[0]
