"""The Firebase identity (AUTH_MODE=firebase): ID tokens, and whether their users may still sign in.

firebase-admin verifies signature, project and times. It blocks, so it runs in a thread. One thread
fetches Google's keys for all (`GoogleKeys`). The hub checks the times itself, because with the
emulator the library checks neither times nor signatures.
"""

import asyncio
import json
import re
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import Any

import firebase_admin
import google.auth.transport.requests
import structlog
from anyio import CapacityLimiter, to_thread
from firebase_admin import _token_gen, auth, credentials
from firebase_admin.exceptions import FirebaseError
from google.auth.exceptions import GoogleAuthError, TransportError
from google.auth.transport import Response
from google.oauth2 import service_account

from api.auth.revocation import NEVER_MS, USERS_PER_CALL_MAX, Unreachable
from api.auth.token_cache import VERIFYING_MAX
from api.timeouts import APP_TIMEOUTS, AppTimeouts
from hub.budget.records import UserId
from hub.errors import Code, HubError, StorageError
from hub.gate import Gate
from hub.outage import Outage
from hub.ports import Principal
from hub.turns import Crowded
from storage.postgres.people.profiles import Profile

SKEW_S = 60  # how far Google's clock and ours may be apart; the most that the library takes
# Threads. They are busy with Python, so two are no faster than one, and hold up the loop far more.
VERIFYING_AT_ONCE = 1
WAITING_PER_ADDRESS = VERIFYING_MAX // 2
HTTP_TIMEOUT_S = 5.0  # of one attempt to reach Google
KEYS_RETRY_S = 5.0  # after Google did not answer
KEYS_STALE_S = 3600.0  # how long after their end known keys count while Google does not answer
KEYS_AGE_S_MIN, KEYS_AGE_S_MAX = 60.0, 24 * 3600.0  # how long they are kept, whatever Google says
NAME_MAX, EMAIL_MAX, PHOTO_MAX = 200, 320, 2048  # code points

# Those of the library that accounts need; what the account may do, its roles say.
_SCOPES = ("cloud-platform", "firebase", "identitytoolkit")
SCOPES = [f"https://www.googleapis.com/auth/{name}" for name in _SCOPES]

_MAX_AGE = re.compile(r"\bmax-age=([0-9]{1,9})\b")
_PHOTO = re.compile(r"https://[!-~]+")

_log = structlog.get_logger()


class Firebase:
    """An `Authenticator` for ID tokens, and the `Accounts` behind them. `now` gives epoch seconds.

    `introduce` is called with what a token says of its user, if it says anything, and when it was
    issued."""

    def __init__(
        self,
        client: auth.Client,
        introduce: Callable[[Profile, datetime], Awaitable[None]],
        *,
        now: Callable[[], float],
        timeouts: AppTimeouts = APP_TIMEOUTS,
    ) -> None:
        self._client = client
        self._introducing_s = timeouts.introducing_s
        self._introduce = introduce
        self._now = now
        self._verifying = CapacityLimiter(VERIFYING_AT_ONCE)
        self._turns = Gate(VERIFYING_AT_ONCE, VERIFYING_AT_ONCE, WAITING_PER_ADDRESS)
        self._asking = CapacityLimiter(1)
        self._standing = Standing(self.valid_since_ms, timeouts.standing_s)

    async def authenticate(self, token: str, address: str = "") -> Principal:
        """The token's user. Raises `HubError`: `NOT_LOGGED_IN`, `UNAVAILABLE` while Google's keys
        are out of reach, `BUSY` where too many of the address wait.

        Where only the user's standing is out of reach the token counts: `Revocations` goes on
        asking."""
        try:
            async with self._turns.turn(address):
                claims = await to_thread.run_sync(
                    self._verified, token, limiter=self._verifying, abandon_on_cancel=True
                )
        except Crowded:
            raise HubError(Code.BUSY) from None
        who = principal_of(claims, self._now(), time.monotonic())
        valid_since_ms = await self._standing.of(who.user_id)
        if valid_since_ms is not None and who.issued_at_ms < valid_since_ms:
            raise HubError(Code.NOT_LOGGED_IN)
        await self._introduced(profile_of(who.user_id, claims), who.issued_at_ms)
        return who

    async def valid_since_ms(self, user_ids: Collection[UserId]) -> Mapping[UserId, int]:
        """See `Accounts`."""
        wanted = list(user_ids)
        try:
            users = await to_thread.run_sync(
                self._users, wanted, limiter=self._asking, abandon_on_cancel=True
            )
        except (FirebaseError, GoogleAuthError) as error:
            self._standing.outage.lost(type(error).__name__)
            raise Unreachable(type(error).__name__) from error
        self._standing.outage.back()
        return {user_id: users.get(user_id, NEVER_MS) for user_id in wanted}

    def _verified(self, token: str) -> Mapping[str, Any]:
        try:
            claims: Mapping[str, Any] = self._client.verify_id_token(
                token, clock_skew_seconds=SKEW_S
            )
        except auth.CertificateFetchError:
            raise HubError(Code.UNAVAILABLE) from None
        except (
            auth.InvalidIdTokenError,
            # What the library makes of claims that are not of the types it expects.
            ValueError,
            TypeError,
            LookupError,
            AttributeError,
            RecursionError,
        ):
            raise HubError(Code.NOT_LOGGED_IN) from None  # it may quote the token
        return claims

    def _users(self, user_ids: Collection[UserId]) -> dict[UserId, int]:
        found = self._client.get_users([auth.UidIdentifier(user_id) for user_id in user_ids])
        return {
            user.uid: NEVER_MS if user.disabled else user.tokens_valid_after_timestamp
            for user in found.users
        }

    async def _introduced(self, profile: Profile | None, issued_at_ms: int) -> None:
        if profile is None:
            return
        try:
            async with asyncio.timeout(self._introducing_s):
                await self._introduce(profile, datetime.fromtimestamp(issued_at_ms / 1000, UTC))
        except (StorageError, TimeoutError) as error:
            # Signing in does not need it (P10); the user's next token brings it again.
            _log.warning("profile not filled", user_id=profile.user_id, cause=type(error).__name__)


class Standing:
    """Asks for one user; those who come while an answer is awaited are asked for together.

    While Firebase does not answer nobody waits. A user who comes then is in the next round of
    `Revocations`; its success makes this one ask again."""

    def __init__(
        self, ask: Callable[[Collection[UserId]], Awaitable[Mapping[UserId, int]]], wait_s: float
    ) -> None:
        self.outage = Outage("standing of users unknown", "standing of users known again")
        self._ask = ask
        self._wait_s = wait_s
        self._waiting: dict[UserId, asyncio.Future[int | None]] = {}
        self._task: asyncio.Task[None] | None = None

    async def of(self, user_id: UserId) -> int | None:
        """Since when the user's tokens count; None where that cannot be told now."""
        if self.outage.on:
            return None
        answer = self._waiting.get(user_id)
        if answer is None:
            answer = asyncio.get_running_loop().create_future()
            self._waiting[user_id] = answer
        if self._task is None:
            self._task = asyncio.create_task(self._answer())
        try:
            async with asyncio.timeout(self._wait_s):
                return await asyncio.shield(answer)
        except TimeoutError:
            self.outage.lost(f"no answer within {self._wait_s} s")
            return None

    async def _answer(self) -> None:
        try:
            while self._waiting:
                some = list(islice(self._waiting, USERS_PER_CALL_MAX))
                asked = {user_id: self._waiting.pop(user_id) for user_id in some}
                answers: Mapping[UserId, int] = {}
                try:
                    with suppress(Unreachable):
                        answers = await self._ask(some)
                finally:
                    for user_id, answer in asked.items():
                        if not answer.done():
                            answer.set_result(answers.get(user_id))
        finally:
            self._task = None


class GoogleKeys:
    """Google's public keys, as the library asks for them: fetched by one thread while the others
    wait, and kept as long as Google says. After a failure nobody tries for `KEYS_RETRY_S`; known
    ones count for `KEYS_STALE_S` more. `fetch` is a `google.auth.transport.Request`."""

    def __init__(self, fetch: Callable[..., Response], *, now_s: Callable[[], float]) -> None:
        self._fetch = fetch
        self._steady_s = now_s
        self._lock = threading.Lock()
        self._response: Response | None = None
        self._fresh_until_s = 0.0
        self._next_s = 0.0

    def __call__(self, url: str, method: str = "GET", **_: object) -> Response:
        """Raises `TransportError`."""
        with self._lock:
            now_s = self._steady_s()
            if now_s >= self._next_s:
                self._renew(url, now_s)
            if self._response is None:
                raise TransportError("keys out of reach")  # type: ignore[no-untyped-call]
            return self._response

    def _renew(self, url: str, now_s: float) -> None:
        try:
            response = self._fetch(url, method="GET", timeout=HTTP_TIMEOUT_S)
            if response.status != 200 or not isinstance(json.loads(response.data), dict):
                raise ValueError("no keys")
        except (TransportError, ValueError) as error:
            _log.warning("keys not fetched", cause=type(error).__name__)
            self._next_s = now_s + KEYS_RETRY_S
            if now_s >= self._fresh_until_s + KEYS_STALE_S:
                self._response = None
            return
        headers = {str(name).lower(): str(value) for name, value in response.headers.items()}
        max_age = _MAX_AGE.search(headers.get("cache-control", ""))
        kept_s = float(max_age[1]) if max_age else 0.0
        kept_s = min(max(kept_s, KEYS_AGE_S_MIN), KEYS_AGE_S_MAX)
        self._response = response
        self._fresh_until_s = self._next_s = now_s + kept_s


class Credentials(service_account.Credentials):
    """A service account that does not wait for its access token for minutes: a thread in which that
    happens holds up the end of the process."""

    def refresh(self, request: Callable[..., Response]) -> None:
        super().refresh(  # type: ignore[no-untyped-call]
            partial(request, timeout=HTTP_TIMEOUT_S)
        )


def open_client(
    project_id: str,
    account: Mapping[str, str] | None,
    *,
    emulated: bool,
    keys: Callable[..., Response],
) -> auth.Client:
    """What speaks with Firebase. The library finds its emulator in the environment by itself, and
    then trusts every token: raises `ValueError` where that and `emulated` differ."""
    if account is None:
        credential: object = credentials.ApplicationDefault()  # the emulator asks nobody
    else:
        credential = Credentials.from_service_account_info(  # type: ignore[no-untyped-call]
            dict(account), scopes=SCOPES
        )
    options = {"projectId": project_id, "httpTimeout": HTTP_TIMEOUT_S}
    client = auth.Client(firebase_admin.App("budget-hub", credential, options))
    if client.emulated is not emulated:
        raise ValueError("FIREBASE_AUTH_EMULATOR_HOST differs from the settings")
    # The library has no other way to be given its keys; its own fetches them once a thread, and
    # may hang for as long as it likes.
    verifier = client._token_verifier
    assert hasattr(verifier, "request")
    verifier.request = keys
    return client


def reach(keys: GoogleKeys) -> bool:
    """Whether Google's keys can be had now. Blocks."""
    try:
        keys(_token_gen.ID_TOKEN_CERT_URI)
    except TransportError:
        return False
    return True


def google_keys(*, now_s: Callable[[], float]) -> GoogleKeys:
    """The keys as Google publishes them."""
    return GoogleKeys(google.auth.transport.requests.Request(), now_s=now_s)


def principal_of(claims: Mapping[str, Any], now: float, now_s: float) -> Principal:
    """Whom the claims name. Raises `HubError` (`NOT_LOGGED_IN`) where they do not count now, by a
    clock that may be `SKEW_S` off. So much later than it says a token ends here."""
    user_id, expires, issued = claims.get("sub"), claims.get("exp"), claims.get("iat")
    begins = claims.get("nbf", issued)
    if type(expires) is not int or type(issued) is not int or type(begins) is not int:
        raise HubError(Code.NOT_LOGGED_IN)
    ends = expires + SKEW_S
    if now >= ends or max(issued, begins) > now + SKEW_S:
        raise HubError(Code.NOT_LOGGED_IN)
    # The library has looked at its length; the rest nobody could store.
    if not isinstance(user_id, str) or user_id != _clean(user_id):
        raise HubError(Code.NOT_LOGGED_IN)
    return Principal(user_id, ends * 1000, issued * 1000, now_s + (ends - now))


def profile_of(user_id: UserId, claims: Mapping[str, Any]) -> Profile | None:
    """What the claims say of their user that a profile has room for; None if they say nothing.

    Firebase knows one name: its first word is taken for the first name."""
    names = _text(claims, "name").split(maxsplit=1)
    first_name, last_name = (*names, "", "")[:2]
    email, photo = _text(claims, "email"), _text(claims, "picture")
    if len(email) > EMAIL_MAX:
        email = ""
    if len(photo) > PHOTO_MAX or not _PHOTO.fullmatch(photo):
        photo = ""
    said = (email, first_name[:NAME_MAX], last_name.strip()[:NAME_MAX], photo)
    if not any(said):
        return None
    return Profile(user_id, *(text or None for text in said))


def _text(claims: Mapping[str, Any], name: str) -> str:
    value = claims.get(name)
    return _clean(value) if isinstance(value, str) else ""


def _clean(text: str) -> str:
    """Without what Postgres cannot store."""
    return text.replace("\0", "").encode(errors="ignore").decode()
