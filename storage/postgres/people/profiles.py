"""Profiles: the one place of names and e-mails, outside all shared data."""

from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple

from hub.budget.records import BudgetId, UserId
from hub.errors import Code, HubError, LostRace
from storage.postgres.database import Database

READ = "SELECT id, email, first_name, last_name, photo FROM users WHERE id = $1"
# A flag says which fields were named: what was not stays, null clears. Snapshots carry the names,
# so a change shows in their tags (`profile_version`).
WRITE = """
INSERT INTO users AS u (id, email, first_name, last_name) VALUES ($1, $3, $5, $7)
ON CONFLICT (id) DO UPDATE
SET email = CASE WHEN $2 THEN $3 ELSE u.email END,
    first_name = CASE WHEN $4 THEN $5 ELSE u.first_name END,
    last_name = CASE WHEN $6 THEN $7 ELSE u.last_name END,
    profile_version = u.profile_version + 1
WHERE NOT ($2 AND $3 IS NULL AND u.password_hash IS NOT NULL)
RETURNING id, email, first_name, last_name, photo
"""
# A token from before the account was closed brings nothing of it back.
INTRODUCE = """
INSERT INTO users (id, email, first_name, last_name, photo)
SELECT $1, $2, $3, $4, $5
WHERE NOT EXISTS (SELECT FROM closed_accounts WHERE user_id = $1 AND closed_at > $6)
ON CONFLICT (id) DO NOTHING
"""
# Photos, also those that were copied and never confirmed, are deleted once nobody names them. The
# uploads first, as who confirms one locks them first.
DELETE_UPLOADS = """
WITH gone AS (
    DELETE FROM photo_uploads WHERE user_id = $1 AND created_at <= $2 RETURNING public_object
)
INSERT INTO photo_leftovers (object, user_id) SELECT public_object, $1 FROM gone
ON CONFLICT DO NOTHING
"""
DELETE = """
WITH gone AS (DELETE FROM users WHERE id = $1 AND created_at <= $2 RETURNING photo_key)
INSERT INTO photo_leftovers (object, user_id) SELECT photo_key, $1 FROM gone
WHERE photo_key IS NOT NULL
ON CONFLICT DO NOTHING
"""
READ_BUDGETS = """
SELECT p.budget_id::text FROM participants p JOIN budgets b ON b.id = p.budget_id
WHERE p.user_id = $1 AND p.active AND NOT b.deleted AND p.joined_at <= $2
ORDER BY p.number
"""


class Profile(NamedTuple):
    user_id: UserId
    email: str | None
    first_name: str | None
    last_name: str | None
    photo: str | None


class Profiles:
    """Methods raise `HubError(USER_NOT_FOUND)` for a user without a profile."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def read(self, user_id: UserId) -> Profile:
        async with self._database.connection("rest", user_id) as connection:
            row = await connection.fetchrow(READ, user_id)
        if row is None:
            raise HubError(Code.USER_NOT_FOUND)
        return Profile._make(row)

    async def write(self, user_id: UserId, fields: Mapping[str, str | None]) -> Profile:
        """Make or change the profile; `fields` may name `email`, `first_name`, `last_name`.

        Raises `HubError(EMAIL_TAKEN)` where the e-mail is another account's login, and
        `HubError(BAD_REQUEST)` where a login would be left without one."""
        flags: list[object] = []
        for name in ("email", "first_name", "last_name"):
            flags += [name in fields, fields.get(name)]
        try:
            async with self._database.connection("rest", user_id) as connection:
                row = await connection.fetchrow(WRITE, user_id, *flags)
        except LostRace:  # the index of logins
            raise HubError(Code.EMAIL_TAKEN) from None
        if row is None:
            raise HubError(Code.BAD_REQUEST, "email: this account signs in by it")
        return Profile._make(row)

    async def introduce(self, profile: Profile, issued_at: datetime) -> None:
        """Make the profile, unless there is one: what its user has edited stays. Nor if the account
        was closed after `issued_at`, which is of the token that says all this."""
        async with self._database.connection("rest", profile.user_id) as connection:
            await connection.execute(INTRODUCE, *profile, issued_at)

    async def delete(self, user_id: UserId, *, made_until: datetime) -> None:
        """Also its logins, where it signs in here; its photo is left to `Photos.clear`. Nothing
        happens where there is none, or only one made later: that is a new account's."""
        async with (
            self._database.connection("rest", user_id) as connection,
            connection.transaction(),
        ):
            await connection.execute(DELETE_UPLOADS, user_id, made_until)
            await connection.execute(DELETE, user_id, made_until)

    async def budgets(self, user_id: UserId, *, joined_until: datetime) -> list[BudgetId]:
        """Those the user takes part in since then or longer."""
        until_ms = int(joined_until.timestamp() * 1000)
        async with self._database.connection("rest", user_id) as connection:
            rows = await connection.fetch(READ_BUDGETS, user_id, until_ms)
        return [row[0] for row in rows]
