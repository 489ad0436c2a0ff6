"""Accounts and their logins, for the local identity."""

from datetime import datetime
from typing import NamedTuple

from storage.postgres.database import Database

# The index users_by_login decides, so that two registrations at once cannot both win. Any other
# collision is left to raise `LostRace`: it says nothing about the e-mail.
CREATE = """
INSERT INTO users (id, email, password_hash, first_name, last_name)
VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (lower(email)) WHERE password_hash IS NOT NULL DO NOTHING
RETURNING id
"""
BY_EMAIL = """
SELECT id, password_hash FROM users
WHERE lower(email) = lower($1) AND password_hash IS NOT NULL
"""
SET_PASSWORD_HASH = """
UPDATE users SET password_hash = $2 WHERE id = $1 AND password_hash = $3
"""
# Every login clears a few that ran out, so that the table holds little more than live ones.
START_FAMILY = """
WITH cleared AS (
    DELETE FROM refresh_families WHERE id IN (
        SELECT id FROM refresh_families WHERE expires_at <= $3
        ORDER BY expires_at LIMIT 10 FOR UPDATE SKIP LOCKED
    )
)
INSERT INTO refresh_families (id, user_id, rotated_at, expires_at) VALUES ($1, $2, $3, $4)
"""
ROTATE_FAMILY = """
UPDATE refresh_families SET generation = generation + 1, rotated_at = $3, expires_at = $4
WHERE id = $1 AND generation = $2 AND NOT revoked AND expires_at > $3
RETURNING user_id
"""
LIVE_FAMILY = """
SELECT user_id, generation, rotated_at FROM refresh_families
WHERE id = $1 AND NOT revoked AND expires_at > $2
"""
REVOKE_FAMILY = """
UPDATE refresh_families SET revoked = true WHERE id = $1
"""


class Account(NamedTuple):
    user_id: str
    password_hash: str


class Family(NamedTuple):
    """One login. `generation` counts since `rotated_at`; tokens of lower ones are used up."""

    user_id: str
    generation: int
    rotated_at: datetime


class Logins:
    """Accounts with a password, unique by e-mail whatever its letter case.

    Every method raises `Disconnected` while Postgres is out of reach, `BadData` for a value it
    refuses, and `Held` for a row that another transaction keeps locked.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(
        self,
        user_id: str,
        email: str,
        password_hash: str,
        first_name: str | None,
        last_name: str | None,
    ) -> bool:
        """Make the account; False if one with this e-mail exists."""
        async with self._database.connection("rest", user_id) as connection:
            created = await connection.fetchval(
                CREATE, user_id, email, password_hash, first_name, last_name
            )
        return created is not None

    async def by_email(self, email: str) -> Account | None:
        """The account that signs in with this e-mail."""
        async with self._database.connection("rest") as connection:
            row = await connection.fetchrow(BY_EMAIL, email)
        return None if row is None else Account(*row)

    async def set_password_hash(self, user_id: str, password_hash: str, *, replacing: str) -> None:
        """Replace the hash, unless another than `replacing` has come to stand there."""
        async with self._database.connection("rest", user_id) as connection:
            await connection.execute(SET_PASSWORD_HASH, user_id, password_hash, replacing)

    async def start_family(
        self, family_id: str, user_id: str, *, now: datetime, expires_at: datetime
    ) -> None:
        """Begin a login at generation 1."""
        async with self._database.connection("rest", user_id) as connection:
            await connection.execute(START_FAMILY, family_id, user_id, now, expires_at)

    async def rotate_family(
        self, family_id: str, generation: int, *, now: datetime, expires_at: datetime
    ) -> str | None:
        """Move a live family on from `generation` and return its user; None if it is not there.

        Of several at once exactly one succeeds; the others return after it committed.
        """
        async with self._database.connection("rest", family_id) as connection:
            user_id: str | None = await connection.fetchval(
                ROTATE_FAMILY, family_id, generation, now, expires_at
            )
        return user_id

    async def live_family(self, family_id: str, *, now: datetime) -> Family | None:
        """The family, unless it is unknown, revoked or past its end."""
        async with self._database.connection("rest", family_id) as connection:
            row = await connection.fetchrow(LIVE_FAMILY, family_id, now)
        return None if row is None else Family(*row)

    async def revoke_family(self, family_id: str) -> None:
        """End a login for good."""
        async with self._database.connection("rest", family_id) as connection:
            await connection.execute(REVOKE_FAMILY, family_id)
