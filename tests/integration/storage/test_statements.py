"""Every statement of the storage is one that this Postgres takes: `make postgres` asks the oldest
that is promised."""

import importlib
import pkgutil
import re
from collections.abc import Iterator

import asyncpg

import storage

SQL = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\b")


def statements(found: object) -> Iterator[str]:
    """Those of a constant, which may be a table of them."""
    if isinstance(found, str) and SQL.match(found):
        yield found
    elif isinstance(found, dict):
        yield from statements(tuple(found.values()))
    elif isinstance(found, tuple | list):
        for each in found:
            yield from statements(each)


def named() -> Iterator[tuple[str, str]]:
    """Each by the constant that has it."""
    for module in pkgutil.walk_packages(storage.__path__, "storage."):
        for name, value in vars(importlib.import_module(module.name)).items():
            if name.lstrip("_").isupper():
                for statement in statements(value):
                    yield statement, f"{module.name}.{name}"


async def test_postgres_takes_every_statement(database_url: str) -> None:
    all_of_them = dict(named())
    assert len(all_of_them) > 80
    connection = await asyncpg.connect(database_url)
    refused = {}
    for statement, name in all_of_them.items():
        try:
            await connection.prepare(statement)
        except asyncpg.PostgresError as error:
            refused[name] = str(error)
    await connection.close()
    assert refused == {}
