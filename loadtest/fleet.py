"""The generator processes, as the parent has them: commands to all, answers from all."""

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import orjson

from loadtest.plan import Plan
from loadtest.stats import Sample
from loadtest.target import Refused, Unreachable

LINE_BYTES_MAX = 2**26
END_S = 10.0  # for a process to end by itself


class GeneratorFailed(Exception):
    """A generator process ended before its work did."""


class Fleet:
    """Use as an asynchronous context manager: at the end every process is gone. `sampled` is
    called with each second of each process."""

    def __init__(self, plans: Sequence[Plan]) -> None:
        self.sampled: Callable[[Sample], object] = lambda sample: None
        self._plans = plans
        self._processes: list[Process] = []
        self._reading: list[asyncio.Task[None]] = []
        self._said: list[asyncio.Queue[Mapping[str, Any]]] = []

    async def __aenter__(self) -> Self:
        for plan in self._plans:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "loadtest.generator",
                stdin=PIPE,
                stdout=PIPE,
                limit=LINE_BYTES_MAX,
            )
            said: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()  # a handful in all
            self._processes.append(process)
            self._said.append(said)
            self._reading.append(asyncio.create_task(self._read(process, said)))
            self._write(process, plan.to_json())
        return self

    async def __aexit__(self, *_: object) -> None:
        for process in self._processes:
            if process.stdin is not None:
                process.stdin.close()
        for process, reading in zip(self._processes, self._reading, strict=True):
            try:
                async with asyncio.timeout(END_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
            await reading

    def tell(self, command: str, **fields: object) -> None:
        for process in self._processes:
            self._write(process, {"do": command, **fields})

    async def all_say(self, kind: str) -> Sequence[Mapping[str, Any]]:
        """Wait until every process has said it. Raises what one of them failed with: `Refused`,
        `Unreachable`, `GeneratorFailed`."""
        return await asyncio.gather(*(self._says(said, kind) for said in self._said))

    async def _says(self, said: asyncio.Queue[Mapping[str, Any]], kind: str) -> Mapping[str, Any]:
        message = await said.get()
        if message["kind"] == "failed":
            raise (Refused if message["refused"] else Unreachable)(message["message"])
        if message["kind"] != kind:
            raise GeneratorFailed(message.get("message") or f"a generator said {message['kind']}")
        return message

    async def _read(self, process: Process, said: asyncio.Queue[Mapping[str, Any]]) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            message = orjson.loads(line)
            if message["kind"] == "sample":
                self.sampled(Sample.from_json(message["sample"]))
            else:
                said.put_nowait(message)
        code = await process.wait()
        said.put_nowait({"kind": "ended", "message": f"a generator ended with exit code {code}"})

    def _write(self, process: Process, message: Mapping[str, Any]) -> None:
        assert process.stdin is not None
        process.stdin.write(orjson.dumps(message) + b"\n")
