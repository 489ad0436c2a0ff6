"""The fault proxy does what it says: the fault tests stand on it."""

import asyncio
import socket
from collections.abc import AsyncIterator

import asyncpg
import pytest

from loadtest.proxy import Proxy
from storage.embedded.postgres import EmbeddedPostgres

DEADLINE_S = 30.0
NOTHING_S = 0.2  # how long nothing must happen


@pytest.fixture
async def echo() -> AsyncIterator[str]:
    """The URL of a server that sends back what it gets, and ends when its client does."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"echo://user:secret@127.0.0.1:{server.sockets[0].getsockname()[1]}/path"
    server.close()


@pytest.fixture
async def proxy(echo: str) -> AsyncIterator[Proxy]:
    async with Proxy(echo) as proxy:
        yield proxy


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, proxy: Proxy) -> "Client":
        return cls(*await asyncio.open_connection("127.0.0.1", proxy.port))

    async def echoes(self, text: bytes) -> None:
        self.writer.write(text)
        async with asyncio.timeout(DEADLINE_S):
            assert await self.reader.readexactly(len(text)) == text

    async def silent(self) -> bool:
        """Nothing arrives, not even the end."""
        try:
            async with asyncio.timeout(NOTHING_S):
                await self.reader.read(1)
        except TimeoutError:
            return True
        return False

    def close(self) -> None:
        self.writer.close()


async def test_forwards_both_ways_to_the_last_byte(proxy: Proxy, echo: str) -> None:
    assert proxy.url == echo.replace(echo.split(":")[-1], f"{proxy.port}/path")
    client = await Client.connect(proxy)
    text = bytes(range(256)) * 20_000

    async def send() -> None:
        client.writer.write(text)
        client.writer.write_eof()
        await client.writer.drain()

    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(send())
        received = tasks.create_task(client.reader.read())
    assert received.result() == text
    client.close()


async def test_cut_resets_and_refuses_until_healed(proxy: Proxy) -> None:
    client = await Client.connect(proxy)
    await client.echoes(b"before")
    await proxy.cut()
    with pytest.raises(ConnectionResetError):
        await client.reader.read(1)
    with pytest.raises(ConnectionRefusedError):
        await Client.connect(proxy)
    client.close()
    assert proxy.connections == 0

    await proxy.heal()
    again = await Client.connect(proxy)
    await again.echoes(b"after")
    again.close()


async def test_what_is_held_back_was_done() -> None:
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.put_nowait(await reader.read(100))
        writer.write(b"done")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, Proxy(f"http://127.0.0.1:{port}") as proxy:
        client = await Client.connect(proxy)
        proxy.hold_back()
        client.writer.write(b"do it")
        async with asyncio.timeout(DEADLINE_S):
            assert await heard.get() == b"do it"
        assert await client.silent()
        await proxy.heal()
        async with asyncio.timeout(DEADLINE_S):
            assert await client.reader.readexactly(4) == b"done"
        client.close()


async def test_black_hole_holds_old_and_new_connections(proxy: Proxy) -> None:
    old = await Client.connect(proxy)
    await old.echoes(b"before")
    proxy.black_hole()
    new = await Client.connect(proxy)
    for client in (old, new):
        client.writer.write(b"held")
        assert await client.silent()
    await proxy.heal()
    for client in (old, new):
        async with asyncio.timeout(DEADLINE_S):
            assert await client.reader.readexactly(4) == b"held"
        client.close()


async def test_what_a_black_hole_held_is_lost_when_it_is_cut(proxy: Proxy) -> None:
    client = await Client.connect(proxy)
    await client.echoes(b"before")
    proxy.black_hole()
    client.writer.write(b"lost")
    assert await client.silent()
    await proxy.cut()
    await proxy.heal()
    with pytest.raises(ConnectionResetError):
        await client.reader.read(1)
    client.close()


async def test_delay_holds_up_every_piece(proxy: Proxy) -> None:
    client = await Client.connect(proxy)
    await client.echoes(b"prompt")
    proxy.delay_s = 0.1
    begun_s = asyncio.get_running_loop().time()
    await client.echoes(b"late")
    assert asyncio.get_running_loop().time() - begun_s >= 2 * 0.1  # there and back
    client.close()


async def test_upstream_that_is_away_resets_the_client() -> None:
    with socket.socket() as deaf:  # its port is taken, but nobody listens
        deaf.bind(("127.0.0.1", 0))
        async with Proxy(f"tcp://127.0.0.1:{deaf.getsockname()[1]}") as proxy:
            client = await Client.connect(proxy)
            with pytest.raises(ConnectionResetError):
                await client.reader.read(1)
            client.close()


async def test_stands_before_postgres(postgres: EmbeddedPostgres) -> None:
    async with Proxy(postgres.url) as proxy:
        connection = await asyncpg.connect(proxy.url)
        assert await connection.fetchval("SELECT 1") == 1
        await proxy.cut()
        with pytest.raises((asyncpg.PostgresConnectionError, OSError)):
            await connection.fetchval("SELECT 2")
        await proxy.heal()
        connection = await asyncpg.connect(proxy.url)
        assert await connection.fetchval("SELECT 3") == 3
        await connection.close()
