"""A real Redis Cluster of embedded servers, of which each can be killed and comes back."""

import asyncio
import os
import secrets
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import Any, Self
from urllib.parse import urlsplit

from redis.asyncio import Redis
from redis.crc import key_slot
from redis.exceptions import RedisError

from storage.embedded import EmbeddedRedis
from tests.cluster import POLL_S

SLOTS = 16384
NODE_TIMEOUT_MS = 1500
FORMING_S = 30.0


class Member:
    """One server of the cluster, at the same address whenever it runs."""

    def __init__(self, folder: Path, password: str) -> None:
        self._folder = folder
        self._password = password
        # The link to the others is at port + 10000 otherwise, which may be none.
        self._bus_port = free_port()
        self.server = self._start(None)
        port = urlsplit(self.url).port
        assert port is not None
        self.port = port

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def bus_port(self) -> int:
        return self._bus_port

    async def ask(self, *words: str | int) -> Any:
        """What it answers to a command of its own: to another one's it answers an error."""
        client: Any = Redis.from_url(self.url, decode_responses=True, socket_timeout=5)
        async with client:
            return await client.execute_command(*words)

    def kill(self) -> None:
        os.kill(self.server.pid, SIGKILL)
        self.server.stop()

    def freeze(self) -> None:
        """It is there and says nothing."""
        os.kill(self.server.pid, SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.server.pid, SIGCONT)

    def restart(self) -> None:
        """With what it knew of the cluster."""
        self.server = self._start(self.port)

    def _start(self, port: int | None) -> EmbeddedRedis:
        settings = {
            "cluster-enabled": "yes",
            "cluster-node-timeout": str(NODE_TIMEOUT_MS),
            "cluster-port": str(self._bus_port),
            # What a cluster is to be set to (infra/README.md): a lost shard is one shard's loss.
            "cluster-require-full-coverage": "no",
            "masterauth": self._password,
        }
        return EmbeddedRedis.start(
            self._folder, settings=settings, port=port, password=self._password
        )


class RedisCluster:
    """Primaries that share the slots evenly, in order, and replicas of the first ones."""

    def __init__(self, members: Sequence[Member], primaries: int) -> None:
        self.members = members
        self.primaries = members[:primaries]
        self.url = members[-1].url

    @classmethod
    async def start(cls, folder: Path, *, primaries: int, replicas: int = 0) -> Self:
        password = secrets.token_urlsafe(24)
        with ExitStack() as on_failure:
            members = []
            for number in range(primaries + replicas):
                members.append(Member(folder / str(number), password))
                on_failure.callback(members[-1].server.stop)
            cluster = cls(members, primaries)
            await cluster._form()
            on_failure.pop_all()
        return cluster

    def close(self) -> None:
        for member in self.members:
            member.server.stop()

    def primary_of(self, channel: str) -> Member:
        """As the slots were given at the start."""
        share = SLOTS // len(self.primaries) + 1
        return self.primaries[key_slot(channel.encode()) // share]

    async def until_whole(self) -> None:
        """Every server says that every slot has a primary that works."""
        async with asyncio.timeout(FORMING_S):
            for member in self.members:
                while not await _is_whole(member):  # noqa: ASYNC110 - nothing tells
                    await asyncio.sleep(POLL_S)

    async def _form(self) -> None:
        share = SLOTS // len(self.primaries) + 1
        for number, member in enumerate(self.primaries):
            last = min(SLOTS, (number + 1) * share) - 1
            await member.ask("CLUSTER ADDSLOTSRANGE", number * share, last)
        first = self.members[0]
        for member in self.members[1:]:
            await member.ask("CLUSTER MEET", "127.0.0.1", first.port, first.bus_port)
        replicas = self.members[len(self.primaries) :]
        async with asyncio.timeout(FORMING_S):
            for replica, primary in zip(replicas, self.primaries, strict=False):
                await _replicate(replica, await primary.ask("CLUSTER MYID"))
        await self.until_whole()


async def _replicate(replica: Member, primary_id: str) -> None:
    while True:  # it has to have heard of it first
        try:
            await replica.ask("CLUSTER REPLICATE", primary_id)
            return
        except RedisError:
            await asyncio.sleep(POLL_S)


async def _is_whole(member: Member) -> bool:
    try:
        info = await member.ask("CLUSTER INFO")
    except RedisError:
        return False
    return bool(info["cluster_state"] == "ok" and info["cluster_slots_ok"] == str(SLOTS))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
