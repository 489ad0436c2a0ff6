"""README.md is true: its commands work as they stand there, and print what it shows.

But for the port: the hub gets one from the system here, so that tests can run beside each other.
"""

import json
import os
import re
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest

from api.cli.main import main
from tests import ROOT
from tests.cluster import Process, family, until_gone

README = (ROOT / "README.md").read_text()
TOUR_TIMEOUT_S = 200.0
LEFT_OUT = re.compile(r"make (test|check)\b|git clone\b")  # they would run this test again

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


class Block(NamedTuple):
    """Commands, and what the README says they print (nothing said: None)."""

    commands: str
    output: str | None

    @classmethod
    def all(cls) -> list["Block"]:
        fences = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
        after = [*fences[1:], ("", "")]
        return [
            cls(_without(text), following if next_kind == "text" else None)
            for (kind, text), (next_kind, following) in zip(fences, after, strict=True)
            if kind in ("sh", "console")
        ]


def _without(commands: str) -> str:
    return "".join(line for line in commands.splitlines(keepends=True) if not LEFT_OUT.match(line))


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a newcomer has after `git clone`, with everything installed already."""
    clone = tmp_path_factory.mktemp("readme") / "budget-hub"
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text().split()]
    shutil.copytree(ROOT, clone, ignore=shutil.ignore_patterns(".git", *ignored), symlinks=True)
    venv = clone / ".venv"
    venv.mkdir()
    for entry in Path(sys.prefix).iterdir():
        (venv / entry.name).symlink_to(entry)
    (venv / "installed").unlink(missing_ok=True)
    (venv / "installed").touch()  # newer than the lock: there is nothing for make to do
    return clone


@pytest.fixture(scope="module")
def environ(clone: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(clone.parent),
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(clone),  # its own code, not what is installed
    }


@pytest.fixture(scope="module")
async def hub(clone: Path, environ: dict[str, str]) -> AsyncIterator[Process]:
    """`make run`, the first command, and then Ctrl-C, which leaves nothing behind."""
    make = Process(
        clone.parent, "make-run", ["run"], {**environ, "PORT": "0"}, program=["make"], cwd=clone
    )
    try:
        await make.serving()
        processes = family(make.pid)
        assert len(processes) >= 3  # the hub, Postgres, Redis
        yield make
        make.signal_group(signal.SIGINT)
        await make.ended()
        await until_gone(processes)
        assert "budget-hub: stopped" in make.out
        assert "Traceback" not in make.err
    finally:
        await make.close()


def test_first_command_is_make_run() -> None:
    assert Block.all()[0] == Block("make run\n", None)


@needs_linux
@pytest.mark.parametrize("turn", ["first", "again"])
async def test_tour(clone: Path, environ: dict[str, str], hub: Process, turn: str) -> None:
    """And again, for somebody who comes back to it; it leaves nothing in the project's folder."""
    url = await hub.serving()
    before = names_in(clone)
    blocks = [block for block in Block.all()[1:] if block.commands]
    assert len(blocks) > 5
    files = [clone.parent / f"output-{turn}-{number}" for number, _ in enumerate(blocks)]
    # One shell for all, because a block uses what those before it have set.
    script = "\n".join(
        f"exec >{file} 2>&1\n{at_this_hub(block.commands, url)}"
        for file, block in zip(files, blocks, strict=True)
    )
    bash = ["-euo", "pipefail", "-c", script]
    shell = Process(clone.parent, f"tour-{turn}", bash, environ, program=["bash"], cwd=clone)
    try:
        await shell.ended(TOUR_TIMEOUT_S)
    finally:
        shell.signal_group(signal.SIGKILL)
        await shell.close()
    outputs = [file.read_text() if file.exists() else None for file in files]
    assert shell.exit_code == 0, [output for output in outputs if output is not None][-1]
    for block, output in zip(blocks, outputs, strict=True):
        if block.output is not None:
            assert output is not None and like(block.output, output), output
    assert names_in(clone) - before <= {"loadtest-out"}


@needs_linux
async def test_hub_says_what_to_try_first(
    clone: Path, environ: dict[str, str], hub: Process
) -> None:
    [hint] = [line for line in hub.out.splitlines() if "a first event:" in line]
    command = hint.partition(":")[2]
    shell = Process(clone.parent, "first", ["-euc", command], environ, program=["bash"], cwd=clone)
    try:
        assert await shell.ended() == 0
    finally:
        await shell.close()
    verdict = json.loads(shell.out)
    assert (verdict["status"], verdict["record"]["createdBy"]) == ("accepted", "alice")


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def at_this_hub(commands: str, url: str) -> str:
    """The commands for a hub that is not at the default address."""
    commands = commands.replace("http://127.0.0.1:8000", url)
    return re.sub(r"(-m loadtest (smoke|watch))\b", rf"\1 --target {url}", commands)


def like(shown: str, printed: str) -> bool:
    """Whether this was printed. `…` stands for anything within a line, and no two runs have the
    same time of the server's clock."""
    lines = []
    for line in shown.splitlines():
        known = [re.escape(part) for part in re.split(r"\s*…\s*", line)]
        pattern = ".*".join(known)
        lines.append(re.sub(r'("(?:serverTime|expiresAt)":)\d+', r"\1\\d+", pattern))
    return re.fullmatch("\n".join(lines), printed.strip()) is not None


def test_every_command_that_is_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"\bmake ([a-z]+)`", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    known = {
        command.name or (command.callback.__name__ if command.callback else "")
        for command in main.registered_commands
    }
    assert set(re.findall(r"`budget-hub ([a-z-]+)", README)) == known
