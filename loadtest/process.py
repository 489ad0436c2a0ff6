"""`budget-hub` as a child process, with files for what it says and an end that is sure.

Signals go to it by its own pid, never by name.
"""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM, Signals
from typing import Any, Self

import orjson

PROGRAM = Path(sys.executable).with_name("budget-hub")
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
POLL_S = 0.02


class Process:
    """One run of a program with these arguments and nothing but this environment.

    It leads a process group of its own, as if started in a terminal."""

    def __init__(
        self,
        folder: Path,
        name: str,
        arguments: Sequence[str | Path],
        environ: Mapping[str, str],
        *,
        cwd: Path | None = None,
        program: Sequence[str | Path] = (PROGRAM,),
    ) -> None:
        self.out_path = folder / f"{name}.out"
        self.err_path = folder / f"{name}.err"
        with self.out_path.open("xb") as out, self.err_path.open("xb") as err:
            self._popen = subprocess.Popen(
                [*program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={"PATH": os.defpath, "LANG": "C.UTF-8", **environ},
                cwd=cwd or folder,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._popen.poll()

    @property
    def out(self) -> str:
        return self.out_path.read_text("utf-8")

    @property
    def err(self) -> str:
        return self.err_path.read_text("utf-8")

    def signal(self, sig: Signals) -> None:
        self._popen.send_signal(sig)  # does nothing once it is reaped

    def signal_group(self, sig: Signals) -> None:
        """To the process and its children, as the terminal does at Ctrl-C."""
        if self.exit_code is None:
            os.killpg(self.pid, sig)

    def pause(self) -> None:
        self.signal(SIGSTOP)

    def resume(self) -> None:
        self.signal(SIGCONT)

    async def ended(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Its exit code, when it has ended."""
        await until(lambda: self.exit_code is not None, timeout_s)
        return self._popen.returncode

    async def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """End it as a deploy would; its exit code."""
        self.signal(SIGTERM)
        return await self.ended(timeout_s)

    async def kill(self) -> None:
        """End it at this instant."""
        self.signal(SIGKILL)
        await self.ended()

    async def close(self) -> None:
        """However it is: afterwards it is gone."""
        if self.exit_code is None:
            self.resume()
            try:
                await self.stop()
            except TimeoutError:
                await self.kill()

    async def says(self, text: str, timeout_s: float = START_TIMEOUT_S) -> str:
        """The first line on its stdout with this text. Raises `AssertionError` if it ends first."""

        def lines() -> list[str]:
            return [line for line in self.out.splitlines(keepends=True) if text in line]

        def said() -> bool:
            if self.exit_code is not None and not lines():
                raise AssertionError(f"ended with {self.exit_code}: {self.out}{self.err}")
            return any(line.endswith("\n") for line in lines())

        await until(said, timeout_s)
        return lines()[0]

    async def serving(self) -> str:
        """The URL it serves on, when it does."""
        line = await self.says("serving on ")
        return line.partition("serving on ")[2].split()[0]


class Hub(Process):
    """A `budget-hub serve`; `url` is its address once it is `up`."""

    url: str

    def __init__(
        self,
        folder: Path,
        name: str,
        environ: Mapping[str, str],
        program: Sequence[str | Path] = (PROGRAM,),
    ) -> None:
        super().__init__(folder, name, ["serve"], environ, program=program)

    async def up(self) -> Self:
        self.url = await self.serving()
        return self

    def log(self) -> list[dict[str, Any]]:
        """Its log; a line that is not of our form comes as an error with itself as the event."""
        lines = []
        for line in self.err.splitlines():
            try:
                lines.append(orjson.loads(line))
            except orjson.JSONDecodeError:
                lines.append({"level": "error", "event": line})
        return lines

    def complaints(self) -> list[dict[str, Any]]:
        """What stands in the log as a defect."""
        return [line for line in self.log() if line["level"] in ("error", "critical")]


async def until(condition: Callable[[], bool], timeout_s: float) -> None:
    """Return as soon as it holds. Raises `TimeoutError`."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"not within {timeout_s} s")
        await asyncio.sleep(POLL_S)
