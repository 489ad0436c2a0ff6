"""P13: a row of the table of kinds and its SQL are all that a new kind of record needs."""

import asyncio
import sys

import asyncpg

from storage.embedded.postgres import EmbeddedPostgres
from tests import ROOT
from tests.conftest import with_database


async def test_p13_a_kind_is_a_row_of_the_table_and_its_sql(
    postgres: EmbeddedPostgres, template: str, database_url: str
) -> None:
    """Events, rules, replay, digest, stream shapes, documents, verify and export follow it."""
    admin = await asyncpg.connect(postgres.url)
    await admin.execute(f"CREATE DATABASE wishes TEMPLATE {template}")
    try:
        urls = database_url, with_database(postgres.url, "wishes")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.wish", *urls, cwd=ROOT, stderr=asyncio.subprocess.PIPE
        )
        _, said = await process.communicate()
        assert process.returncode == 0, said.decode()
    finally:
        await admin.execute("DROP DATABASE wishes WITH (FORCE)")
        await admin.close()
