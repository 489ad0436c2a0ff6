"""A real Redis Cluster of embedded servers, of which each can be killed and comes back."""

import asyncio
import os
import secrets
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import Any, Self

from redis.asyncio import Redis
from redis.crc import key_slot
from redis.exceptions import RedisError

from loadtest.cluster import Port
from storage.embedded.redis import EmbeddedRedis
from tests.cluster import POLL_S

SLOTS = 16384
NODE_TIMEOUT_MS = 1500
FORMING_S = 60.0


class Member:
    """One server of the cluster, at the same address whenever it runs."""

    def __init__(self, folder: Path, password: str) -> None:
        self._folder = folder
        self._password = password
        self._port = Port()
        # The link to the others is at port + 10000 otherwise, which may be none.
        self._bus_port = Port()
        self.port = self._port.number
        self.server = self._start()

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def bus_port(self) -> int:
        return self._bus_port.number

    async def ask(self, *words: str | int) -> Any:
        """What it answers to a command of its own: to another one's it answers an error."""
        client: Any = Redis.from_url(self.url, decode_responses=True, socket_timeout=FORMING_S / 3)
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
        self.server = self._start()

    def close(self) -> None:
        self.server.stop()
        for port in (self._port, self._bus_port):
            port.close()

    def _start(self) -> EmbeddedRedis:
        settings = {
            "cluster-enabled": "yes",
            "cluster-node-timeout": str(NODE_TIMEOUT_MS),
            "cluster-port": str(self.bus_port),
            # What a cluster is to be set to (infra/README.md): a lost shard is one shard's loss.
            "cluster-require-full-coverage": "no",
            "repl-diskless-sync-delay": "0",  # a replica without its copy cannot take over
            "masterauth": self._password,
        }
        return EmbeddedRedis.start(
            self._folder, settings=settings, port=self.port, password=self._password
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
                on_failure.callback(members[-1].close)
            cluster = cls(members, primaries)
            await cluster._form()
            on_failure.pop_all()
        return cluster

    def close(self) -> None:
        for member in self.members:
            member.close()

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
            for replica in replicas:
                while not await _has_its_copy(replica):  # noqa: ASYNC110 - nothing tells
                    await asyncio.sleep(POLL_S)
        await self.until_whole()

    async def give_up_after(self, timeout_ms: int) -> None:
        """So long a server may be silent before the others count it as lost."""
        for member in self.members:
            await member.ask("CONFIG SET", "cluster-node-timeout", timeout_ms)

    async def serving(self, number: int) -> Member:
        """Who has the slots of that primary now: itself, or the replica that has taken over."""
        primary, *replicas = self.members[number :: len(self.primaries)]
        for member in replicas:
            if (await member.ask("ROLE"))[0] == "master":
                return member
        return primary


async def _replicate(replica: Member, primary_id: str) -> None:
    while True:  # it has to have heard of it first
        try:
            await replica.ask("CLUSTER REPLICATE", primary_id)
            return
        except RedisError:
            await asyncio.sleep(POLL_S)


async def _has_its_copy(member: Member) -> bool:
    return "master_link_status:up" in await member.ask("INFO replication")


async def _is_whole(member: Member) -> bool:
    try:
        info = await member.ask("CLUSTER INFO")
    except RedisError:
        return False
    return bool(info["cluster_state"] == "ok" and info["cluster_slots_ok"] == str(SLOTS))
