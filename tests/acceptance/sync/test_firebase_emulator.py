"""The Firebase identity with Firebase's own Auth emulator: `make test-firebase`.

What `test_token_life_cycle.py` shows with tokens signed here is shown with tokens that Firebase's
code issued, and with its answers to look-ups. The emulator signs nothing, so signatures are not in
question here.
"""

import base64
import json
import os
import shutil
import socket
import time
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import httpx2
import pytest
from websockets.exceptions import InvalidStatus

from tests import ROOT
from tests.cluster import Cluster, Node, Process, until
from tests.device import Ended, Json, Way, budget_create, connect, new_id

pytestmark = pytest.mark.firebase

TOOLS = ROOT / ".firebase-tools" / "node_modules" / ".bin" / "firebase"
PROJECT = "demo-budget-hub"
PASSWORD = "correct horse battery"
START_S = 50.0
NOTICED_S = 10.0
PATH = os.pathsep.join([os.path.dirname(shutil.which("node") or ""), os.defpath])


class Account(NamedTuple):
    user_id: str
    email: str
    token: str
    refresh_token: str


class Emulator:
    def __init__(self, host: str, client: httpx2.AsyncClient) -> None:
        self.host = host
        self._client = client

    async def sign_up(self, **profile: str) -> Account:
        email = f"{new_id()}@example.org"
        asked = {"email": email, "password": PASSWORD, "returnSecureToken": True, **profile}
        return self._account(email, await self._ask("accounts:signUp", asked))

    async def sign_in(self, email: str) -> Account:
        asked = {"email": email, "password": PASSWORD, "returnSecureToken": True}
        return self._account(email, await self._ask("accounts:signInWithPassword", asked))

    async def refreshed(self, account: Account) -> str:
        """The next token of a login."""
        answer = await self._client.post(
            "/securetoken.googleapis.com/v1/token?key=any",
            data={"grant_type": "refresh_token", "refresh_token": account.refresh_token},
        )
        answer.raise_for_status()
        token: str = answer.json()["id_token"]
        return token

    async def update(self, account: Account, **changed: object) -> None:
        """As an administrator does."""
        asked = {"localId": account.user_id, **changed}
        await self._ask(f"projects/{PROJECT}/accounts:update", asked)

    async def delete(self, account: Account) -> None:
        await self._ask(f"projects/{PROJECT}/accounts:delete", {"localId": account.user_id})

    async def _ask(self, method: str, asked: Json) -> Json:
        answer = await self._client.post(
            f"/identitytoolkit.googleapis.com/v1/{method}?key=any",
            json=asked,
            headers={"Authorization": "Bearer owner"} if method.startswith("projects") else {},
        )
        answer.raise_for_status()
        found: Json = answer.json()
        return found

    @staticmethod
    def _account(email: str, answer: Json) -> Account:
        return Account(answer["localId"], email, answer["idToken"], answer["refreshToken"])


@pytest.fixture(scope="module")
async def emulator(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Emulator]:
    assert TOOLS.exists(), "`make test-firebase` installs Firebase's tools"
    folder = tmp_path_factory.mktemp("emulator")
    auth, hub, logging = ({"host": "127.0.0.1", "port": free_port()} for _ in range(3))
    emulators = {"auth": auth, "hub": hub, "logging": logging, "ui": {"enabled": False}}
    (folder / "firebase.json").write_text(json.dumps({"emulators": emulators}))
    process = Process(
        folder,
        "emulator",
        ["emulators:start", "--only", "auth", "--project", PROJECT],
        {"PATH": PATH, "HOME": str(folder), "CI": "1"},
        program=(TOOLS,),
    )
    host = f"127.0.0.1:{auth['port']}"
    try:
        await process.says("All emulators ready", START_S)
        async with httpx2.AsyncClient(base_url=f"http://{host}", trust_env=False) as client:
            yield Emulator(host, client)
    finally:
        await process.close()


@pytest.fixture(scope="module")
async def node(cluster: Cluster, emulator: Emulator) -> Node:
    return await cluster.start(
        AUTH_MODE="firebase",
        FIREBASE_PROJECT_ID=PROJECT,
        FIREBASE_AUTH_EMULATOR_HOST=emulator.host,
        REVOCATION_CHECK_S="1",
    )


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


def claims_of(token: str) -> dict[str, Any]:
    part = token.split(".")[1]
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return claims


def changed(token: str, **claims: object) -> str:
    """Another token of the emulator's kind: unsigned, it can be anything."""
    header = token.split(".")[0]
    payload = json.dumps({**claims_of(token), **claims}).encode()
    return f"{header}.{base64.urlsafe_b64encode(payload).rstrip(b'=').decode()}."


async def is_refused(node: Node, token: str) -> None:
    """By every way in."""
    async with node.rest(token) as rest:
        for path in ("/budgets", f"/events?budgetId={new_id()}&key=0&wait=1"):
            answer = await rest.get(path)
            assert answer.status_code == 401
            assert answer.json()["error"]["message"] == "NOT_LOGGED_IN"
    with pytest.raises(InvalidStatus) as refused:
        async with connect(node.url, token):
            pass
    assert refused.value.response.status_code == 401
    ways: tuple[Way, ...] = ("subprotocol", "frame")
    for way in ways:
        with pytest.raises(Ended) as ended:
            async with connect(node.url, token, way=way):
                pass
        assert ended.value.code == 4401


@pytest.mark.parametrize("way", ["header", "subprotocol", "frame"])
async def test_who_signed_up_is_let_in(node: Node, emulator: Emulator, way: Way) -> None:
    account = await emulator.sign_up(displayName="Ada King Lovelace")
    for known in (account, await emulator.sign_in(account.email)):
        async with (
            node.rest(known.token) as rest,
            connect(node.url, known.token, way=way) as device,
        ):
            [welcome] = device.of_type("welcome")
            assert welcome["userId"] == account.user_id
            await device.accepted(budget_create(new_id()))
            assert len((await rest.get("/budgets")).json()["budgets"]) >= 1
            assert (await rest.get("/user")).json() == {
                "id": account.user_id,
                "firstName": "Ada",
                "lastName": "King Lovelace",
                "photo": None,
                "email": account.email,
            }


async def test_a_session_is_renewed_with_a_refreshed_token(node: Node, emulator: Emulator) -> None:
    account, other = await emulator.sign_up(), await emulator.sign_up()
    ends_s = int(time.time()) - 60 + 4
    async with connect(node.url, changed(account.token, exp=ends_s)) as device:
        await device.send({"type": "auth", "token": await emulator.refreshed(account)})
        await device.wait_for(lambda: len(device.of_type("auth")) == 2)
        first, second = device.of_type("auth")
        assert second["expiresAt"] > first["expiresAt"]
        await device.send({"type": "auth", "token": await emulator.refreshed(other)})
        assert await device.until_closed() == 4401


@pytest.mark.parametrize("how", ["disabled", "revoked", "deleted"])
async def test_who_is_signed_out_is_gone(node: Node, emulator: Emulator, how: str) -> None:
    account, bystander = await emulator.sign_up(), await emulator.sign_up()
    async with (
        connect(node.url, account.token) as device,
        connect(node.url, bystander.token) as other,
    ):
        at_s = time.monotonic()
        if how == "disabled":
            await emulator.update(account, disableUser=True)
        elif how == "deleted":
            await emulator.delete(account)
        else:
            await emulator.update(account, validSince=str(claims_of(account.token)["iat"] + 1))
        assert await device.until_closed() == 4401
        assert time.monotonic() - at_s < NOTICED_S
        await is_refused(node, account.token)
        await other.ping()
    if how == "revoked":
        # Firebase's times are whole seconds: a login within the same one would be from before.
        issued_s = claims_of(account.token)["iat"]
        await until(lambda: time.time() >= issued_s + 1, NOTICED_S)
        async with connect(node.url, (await emulator.sign_in(account.email)).token) as again:
            await again.ping()
    else:
        with pytest.raises(httpx2.HTTPStatusError):
            await emulator.sign_in(account.email)


async def test_a_token_of_somebody_who_does_not_exist_is_refused(
    node: Node, emulator: Emulator
) -> None:
    account = await emulator.sign_up()
    await is_refused(node, changed(account.token, sub="nobody", user_id="nobody"))


async def test_an_expired_token_is_refused(node: Node, emulator: Emulator) -> None:
    """The library takes it: with the emulator it looks at no time."""
    account, now_s = await emulator.sign_up(), int(time.time())
    await is_refused(node, changed(account.token, iat=now_s - 4000, exp=now_s - 61))
    await is_refused(node, changed(account.token, iat=now_s + 120))


async def test_in_mid_stream_a_token_ends(node: Node, emulator: Emulator) -> None:
    account = await emulator.sign_up()
    ends = changed(account.token, exp=int(time.time()) - 60 + 2)
    async with connect(node.url, ends) as device:
        await device.wait_for(lambda: bool(device.of_type("auth.expiring")))
        assert await device.until_closed() == 4401


async def test_a_token_of_another_project_is_refused(node: Node, emulator: Emulator) -> None:
    account = await emulator.sign_up()
    issuer = "https://securetoken.google.com/demo-another"
    await is_refused(node, changed(account.token, aud="demo-another", iss=issuer))
    await is_refused(node, changed(account.token, aud="demo-another"))
    await is_refused(node, changed(account.token, iss=issuer))


async def test_the_hub_says_that_it_trusts_anybody(node: Node) -> None:
    assert [line for line in node.log() if "emulator" in line["event"]] != []
