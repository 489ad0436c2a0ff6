"""Backup and restore as infra/README.md says, with Postgres' own programs; and devices
that come back to a log which has lost events."""

import asyncio
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import asyncpg
from typer.testing import CliRunner

from api.cli.main import main
from hub.budget.verdicts import Verdict
from loadtest.replica import Replica
from storage.embedded.postgres import EmbeddedPostgres
from storage.postgres.database import Database
from storage.postgres.migrate import migrate
from tests.cluster import POLL_S, REST_S, Cluster, Node
from tests.conftest import with_database
from tests.device import Json, Refused, budget_create, connect, expense_add, new_id
from tests.history import submit
from tests.postgres import program, start

COUNT_CONNECTIONS = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1"


class Phone:
    """A device that keeps one budget, and does what the wire asks of it when the log is another's
    or shorter than it knows."""

    def __init__(self, token: str, budget_id: str) -> None:
        self.replica = Replica(budget_id)
        self.log_id: str | None = None
        self.snapshots = 0
        self._token = token

    async def sync(self, node: Node, *events: Mapping[str, Any]) -> None:
        """Catch up with the log, after having added these events to it."""
        budget_id = self.replica.budget_id
        async with connect(node.url, self._token) as device:
            if events:
                await device.accepted(*map(dict, events))
            try:
                stream = await device.subscribe(budget_id, self.replica.sequence)
                another = self.log_id not in (None, stream.log_id)
            except Refused as refused:
                assert refused.code == "CURSOR_AHEAD"
                another = True
            if another:
                async with node.rest(self._token) as rest:
                    snapshot = (await rest.get(f"/budgets/{budget_id}")).json()
                self.replica = Replica.from_snapshot(snapshot)
                self.snapshots += 1
                stream = await device.subscribe(budget_id, self.replica.sequence)
            self.log_id = stream.log_id
            await device.reached(budget_id, stream.head)
            for event in device.streams[budget_id].events:
                if event.body["sequence"] > self.replica.sequence:
                    self.replica.apply(event.body)


async def test_a_moment_between_two_events_is_restored(tmp_path: Path) -> None:
    """A base backup and the archive of the WAL since: everything until then, nothing after."""
    kept = {
        "archive_mode": "on",
        "archive_command": "cp %p ../archive/%f",
    }  # from the data's folder
    # Its user may not enter the folders above, so all that it needs is beside its data.
    before, after = tmp_path / "before" / "postgres", tmp_path / "after" / "postgres"
    budget_id = new_id()
    with start(before.parent, settings=kept) as postgres:
        (before / "archive").mkdir()
        give(before / "archive", like=before / "data")
        await migrate(postgres.url)
        await postgres_program(
            "pg_basebackup", f"--pgdata={after / 'data'}", "--wal-method=none",
            "--checkpoint=fast", f"--dbname={postgres.url}",
        )  # fmt: skip
        await write(postgres.url, budget_create(budget_id), expense_add(budget_id))
        admin = await asyncpg.connect(postgres.url)
        moment = await admin.fetchval("SELECT clock_timestamp()")
        await write(postgres.url, expense_add(budget_id, note="an accident"))
        last = await admin.fetchval("SELECT pg_walfile_name(pg_switch_wal())")
        async with asyncio.timeout(REST_S):
            while not (before / "archive" / last).exists():  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(POLL_S)
        await admin.close()

    shutil.copytree(before / "archive", after / "archive")
    shutil.copy(before / "password", after)
    (after / "data" / "recovery.signal").touch()
    for path in (after, *after.rglob("*")):
        give(path, like=before / "data")
    recovery = {
        "restore_command": "cp ../archive/%f %p",
        "recovery_target_time": str(moment),
        "recovery_target_action": "promote",
    }
    with start(after.parent, settings=recovery) as restored:
        code, said = await command(restored.url, "verify")
        assert (code, "1 budgets, 2 events, 0 differences" in said) == (0, True), said
        [verdict] = await write(restored.url, expense_add(budget_id, note="goes on"))
        assert (verdict.status, verdict.sequence) == ("accepted", 3)


def give(path: Path, *, like: Path) -> None:
    """Give it to whom the other belongs: root runs Postgres as an ordinary user."""
    os.chown(path, like.stat().st_uid, like.stat().st_gid)


async def write(database_url: str, *events: Json) -> Sequence[Verdict]:
    database = await Database.connect(database_url)
    try:
        verdicts = await submit(database, "ann", events)
        assert {verdict.status for verdict in verdicts} == {"accepted"}
        return verdicts
    finally:
        await database.close()


async def command(database_url: str, *arguments: str) -> tuple[int, str]:
    """Its exit code, and what it said."""
    environ = {"DATABASE_URL": database_url}
    done = await asyncio.to_thread(lambda: CliRunner().invoke(main, arguments, env=environ))
    return done.exit_code, done.output


async def postgres_program(name: str, *arguments: str) -> None:
    done = await asyncio.create_subprocess_exec(
        program(name), *arguments, stderr=asyncio.subprocess.PIPE
    )
    _, said = await done.communicate()
    assert done.returncode == 0, said


async def test_a_restore_that_lost_events_and_the_devices_that_come_back(
    cluster: Cluster, postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    """P6: those ahead of the restored log, and those whose cursor is a number of both."""
    budget_id, token = new_id(), cluster.token("ann")
    ahead, level, behind = (Phone(token, budget_id) for _ in range(3))
    node = await cluster.start()
    await ahead.sync(node, budget_create(budget_id), *(expense_add(budget_id) for _ in range(4)))
    dump = tmp_path / "hub.dump"
    how = ["--format=custom", f"--file={dump}"]
    await postgres_program("pg_dump", *how, cluster.database_url)
    await behind.sync(node)
    await ahead.sync(node, *(expense_add(budget_id, note="lost") for _ in range(2)))
    await level.sync(node)
    await ahead.sync(node, *(expense_add(budget_id, note="lost") for _ in range(3)))
    assert [phone.replica.sequence for phone in (ahead, level, behind)] == [10, 7, 5]
    await node.stop()

    name = f"restored_{new_id()[:8]}"
    admin = await asyncpg.connect(postgres.url)
    try:
        await admin.execute(f"CREATE DATABASE {name}")
        url = with_database(postgres.url, name)
        await postgres_program("pg_restore", "--exit-on-error", f"--dbname={url}", str(dump))
        code, said = await command(url, "verify")
        assert code == 0, said
        assert "1 budgets, 5 events, 0 differences" in said
        early = await cluster.start(DATABASE_URL=url)  # somebody was too quick
        code, said = await command(url, "new-log-id")
        assert (code, said) == (
            1,
            "budget-hub: stop all nodes first: some are connected to the database\n",
        )
        await early.stop()
        async with asyncio.timeout(REST_S):  # the server's side of its connections ends after it
            while await admin.fetchval(COUNT_CONNECTIONS, name):  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(POLL_S)
        code, said = await command(url, "new-log-id")
        assert code == 0, said

        node = await cluster.start(DATABASE_URL=url)
        other = Phone(token, budget_id)
        # The numbers that were lost are given again, up to the one `level` has.
        await other.sync(node, *(expense_add(budget_id, note="new") for _ in range(2)))
        assert str(other.log_id) in said
        phones = [ahead, level, behind, other]
        for phone in phones:
            await phone.sync(node)
        assert [phone.snapshots for phone in phones] == [1, 1, 1, 0]
        await ahead.sync(node, expense_add(budget_id))
        for phone in phones:
            await phone.sync(node)
        assert [phone.replica.sequence for phone in phones] == [8, 8, 8, 8]
        assert len({phone.replica.digest_text for phone in phones}) == 1
        assert "lost" not in str([phone.replica.records for phone in phones])
        assert [phone.snapshots for phone in phones] == [1, 1, 1, 0]  # once is enough
        await node.stop()
        assert (await command(url, "verify"))[0] == 0
    finally:
        await admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        await admin.close()
