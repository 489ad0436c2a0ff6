"""One scripted conversation with a real hub, taken down as the examples of the documents.

Every answer and frame is checked against the documents as it comes. What differs from run to run
(ids the hub makes, times, tokens) is stood in for by fixed values, so that two runs give one text.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Literal

import orjson
from httpx2 import AsyncClient, Response

from api.documents.examples import Call, Sent
from tests.cluster import Cluster, Node
from tests.device import Device, Json, Refused, connect
from tests.documented import Documented

WHEN = 1795000000000  # what clients write; the hub's own times are others
HOME, HOLIDAY, NOWHERE, OTHER = (f"6414b6a3-9e0c-4a0e-8a3c-00000000000{n}" for n in range(4))
CATEGORY, EXPENSE = (f"8136ad07-3c5e-4f12-a1a7-00000000000{n}" for n in range(2))
PHOTO = b"\x89PNG\r\n\x1a\n"  # as much of one as the hub looks at
REQUEST_ID = "an-example"
PASSWORD = "correct horse battery"


class Recorder:
    def __init__(self, documented: Documented) -> None:
        self.documented = documented
        self.calls: list[Call] = []
        self.sent: list[Sent] = []
        self._events = 0

    def event(self, event_type: str, **fields: object) -> Json:
        self._events += 1
        event_id = f"b5d1fc52-7a3e-4a51-bd4b-{self._events:012}"
        return {
            "eventId": event_id,
            "eventType": event_type,
            "budgetId": HOME,
            **fields,
            "when": WHEN + self._events,
        }

    async def call(
        self,
        rest: AsyncClient,
        title: str,
        method: str,
        path: str,
        status: int,
        body: object = None,
        **headers: str,
    ) -> Any:
        """Ask, check the answer, take both down; the answer's JSON."""
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        headers["X-Request-Id"] = REQUEST_ID
        content = {} if body is None else {"json": body}
        response = await rest.request(method, path, headers=headers, **content)  # type: ignore[arg-type]
        assert response.status_code == status, response.text
        answer = response.json() if response.content else None
        self._take_down(title, method, path, body, response, answer)
        return answer

    def _take_down(
        self, title: str, method: str, path: str, body: object, response: Response, answer: object
    ) -> None:
        name = self.documented.operation_of(method, path)
        self.documented.check_answer(name, response)
        if body is not None and response.status_code < 400:
            self.documented.check_body(name, body)
        if name == "listBudgets" and isinstance(answer, dict):
            # Keys of budgets are the database's numbers of memberships, whoever else made some.
            answer = {**answer, "nextKey": 2} if "nextKey" in answer else answer
        request = f"{method} {path}"
        self.calls.append(Call(title, name, request, body, response.status_code, answer))

    async def read_stream(self, rest: AsyncClient, title: str, path: str) -> None:
        """The first event of a Server-Sent Events stream."""
        async with rest.stream("GET", path, headers={"X-Request-Id": REQUEST_ID}) as response:
            assert response.status_code == 200
            text = ""
            async for part in response.aiter_text():
                text += part
                if "\n\n" in text:
                    break
            text = text[: text.index("\n\n") + 2]
            data = re.search(r"^event: (\w+)\ndata: (.*)$", text, re.MULTILINE)
            assert data is not None, text
            self.documented.check_stream(data[1], orjson.loads(data[2]))
            name = self.documented.operation_of("GET", path)
            self.calls.append(Call(title, name, f"GET {path}", None, 200, text))

    def show(self, title: str, frame: Json, sender: Literal["client", "server"] = "server") -> None:
        self.sent.append(Sent(title, sender, frame))

    async def ask(self, device: Device, title: str, frame: Json, answers: str) -> Json:
        """Send a frame, and take it down with its answer."""
        try:
            answer = await device.ask(frame)
        except Refused:
            answer = device.of_type("error")[-1]
        self.show(title, {**frame, "id": answer["id"]}, "client")
        self.show(answers, answer)
        return answer

    def normalised(self) -> Json:
        """All that was taken down, the same in every run."""
        taken = {
            "calls": [call._asdict() for call in self.calls],
            "sent": [sent._asdict() for sent in self.sent],
        }
        scripted = {HOME, HOLIDAY, NOWHERE, OTHER, CATEGORY, EXPENSE}
        stood_in: dict[str, str] = {}
        digests: dict[str, str] = {}

        def id_(match: "re.Match[str]") -> str:
            if match[0] in scripted or match[0].startswith("b5d1fc52-7a3e-4a51-bd4b-"):
                return match[0]
            new = f"00000000-0000-4000-8000-{len(stood_in) + 1:012}"
            return stood_in.setdefault(match[0], new)

        def digest(match: "re.Match[str]") -> str:  # it counts user ids, which differ
            new = f"{len(digests) + 1:016x}"
            return match[1] + digests.setdefault(match[2], new)

        def time(match: "re.Match[str]") -> str:
            mine = WHEN <= int(match[0]) < WHEN + 1000
            return match[0] if mine else "1795257600000"

        text = orjson.dumps(taken, option=orjson.OPT_INDENT_2).decode()
        text = re.sub(r"eyJ[\w-]+\.[\w-]+\.[\w-]+", "eyJhbGciOiJIUzI1NiJ9.e30.c2lnbmVk", text)
        text = re.sub(r"(\.[0-9]+)\.[\w-]{43}\b", r"\1.bm90LWEtdG9rZW4", text)
        text = re.sub(r'("token": "|invite=)[\w-]{32}"', r'\1bm90LWFuLWludml0ZQ"', text)
        text = re.sub(r"http://127\.0\.0\.1:[0-9]+/", "https://hub.example/", text)
        text = re.sub(r"(expires|signature)=[\w-]+", r"\1=…", text)
        text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", id_, text)
        text = re.sub(r'(\bdigest\\?": ?\\?")([0-9a-f]{16})\b', digest, text)
        text = re.sub(r"\b1[0-9]{12}\b", time, text)
        text = re.sub(r'("(?:reconnect|retry)AfterMs": )[0-9]+', r"\g<1>1830", text)
        normalised: Json = orjson.loads(text)
        return normalised


async def converse(
    cluster: Cluster, node: Node, documented: Documented, waiting: Device
) -> Recorder:
    """The whole of it. `waiting` has subscribed to `OTHER`; its first `heads`, 15 s after it was
    opened, are the end."""
    taken = Recorder(documented)
    async with AsyncExitStack() as stack:
        nobody = await stack.enter_async_context(node.rest())
        alice = await stack.enter_async_context(_signed_in(taken, node, nobody))
        ben = await stack.enter_async_context(node.rest(cluster.token("ben")))
        token = alice.headers["Authorization"].split()[1]
        watch = await stack.enter_async_context(connect(node.url, token))
        await _of_events(taken, alice, nobody)
        await watch.subscribe(HOME)
        await _of_reads(taken, alice, ben)
        await _of_members(taken, alice, ben)
        await _of_doors(taken, alice, ben)
        await _of_profiles(taken, alice, ben)
        await _of_photos(taken, alice)
        await _of_sockets(taken, cluster, node, token)
        await _of_deletion(taken, watch, alice, ben)
        await _of_closing(taken, alice, ben)
        await _of_leaving(taken, cluster)
        await taken.call(nobody, "the table", "GET", "/errors", 200)
        await taken.call(nobody, "alive", "GET", "/healthz", 200)
        await taken.call(nobody, "ready", "GET", "/readyz", 200)
        await waiting.wait_for(lambda: bool(waiting.of_type("heads")), 60)
        taken.show("where the budgets are", waiting.of_type("heads")[0])
        for frame in [*watch.frames, *waiting.frames]:
            documented.check_frame("server", frame.body)
    return taken


@asynccontextmanager
async def _signed_in(
    taken: Recorder, node: Node, nobody: AsyncClient
) -> AsyncIterator[AsyncClient]:
    """Alice, by the token of her last refresh."""
    account = {"email": "alice@example.org", "password": PASSWORD}
    register, login, refresh = "/auth/register", "/auth/login", "/auth/refresh"
    named = {**account, "firstName": "Alice"}
    await taken.call(nobody, "a new account", "POST", register, 201, named)
    await taken.call(nobody, "the e-mail is known", "POST", register, 409, account)
    await taken.call(nobody, "no password", "POST", register, 400, {"email": "a@example.org"})
    signed_in = await taken.call(nobody, "signed in", "POST", login, 200, account)
    wrong = {**account, "password": "wrong"}
    await taken.call(nobody, "a wrong password", "POST", login, 401, wrong)
    presented = {"refreshToken": signed_in["refreshToken"]}
    refreshed = await taken.call(nobody, "refreshed", "POST", refresh, 200, presented)
    await taken.call(nobody, "no token of ours", "POST", refresh, 401, {"refreshToken": "x"})
    async with node.rest(refreshed["token"]) as rest:
        yield rest


async def _of_events(taken: Recorder, alice: AsyncClient, nobody: AsyncClient) -> None:
    create = {
        "eventId": "b5d1fc52-7a3e-4a51-bd4b-900000000001",
        "id": HOME,
        "title": "Home",
        "currency": "EUR",
        "when": WHEN,
    }
    await taken.call(alice, "a new budget", "POST", "/budgets", 201, create)
    await taken.call(alice, "sent again", "POST", "/budgets", 201, create)
    other = {**create, "eventId": "b5d1fc52-7a3e-4a51-bd4b-900000000002"}
    await taken.call(alice, "the id is taken", "POST", "/budgets", 409, other)
    holiday = {**other, "id": HOLIDAY, "title": "Holiday", "details": "Lisbon"}
    await taken.call(alice, "a new budget", "POST", "/budget", 201, holiday)
    untitled = {**other, "title": ""}
    await taken.call(alice, "a budget without a title", "POST", "/budget", 400, untitled)

    category = taken.event("category.add", recordId=CATEGORY, name="Food", allocate="400")
    expense = taken.event(
        "expense.add", recordId=EXPENSE, categoryId=CATEGORY, amount="12.5", date="2026-11-21"
    )
    batch = {"events": [category, expense]}
    await taken.call(alice, "two events", "POST", "/events", 200, batch)
    good = taken.event("expense.edit", recordId=EXPENSE, version=1, amount="12.75", note=None)
    stale = taken.event("expense.edit", recordId=EXPENSE, version=1, note="bread")
    lost = taken.event("expense.edit", recordId=NOWHERE, version=1, note="bread")
    each = {"events": [good, stale, lost, category]}
    title = "accepted, a conflict, rejected, a duplicate"
    await taken.call(alice, title, "POST", "/events?mode=each", 207, each)
    await taken.call(alice, "the first is stale", "POST", "/events", 200, {"events": [stale]})
    await taken.call(alice, "no events", "POST", "/events", 400, {"events": []})
    await taken.call(nobody, "no token", "POST", "/events", 401, batch)


async def _of_reads(taken: Recorder, alice: AsyncClient, ben: AsyncClient) -> None:
    log, home = f"/events?budgetId={HOME}", f"/budgets/{HOME}"
    await taken.call(alice, "the log so far", "GET", f"{log}&count=2", 200)
    await taken.call(alice, "nothing new in time", "GET", f"{log}&key=4&wait=0", 200)
    await taken.call(alice, "a key of another history", "GET", f"{log}&key=9", 409)
    await taken.call(alice, "no budget", "GET", "/events", 400)
    await taken.call(ben, "somebody else's budget", "GET", log, 404)
    await taken.read_stream(alice, "from the start", f"{home}/stream?key=3")
    await taken.call(ben, "somebody else's budget", "GET", f"{home}/stream", 404)

    await taken.call(alice, "all of them", "GET", "/budgets", 200)
    await taken.call(alice, "a count of nothing", "GET", "/budgets?count=0", 400)
    tag = (await alice.get(home)).headers["ETag"]
    await taken.call(alice, "the snapshot", "GET", home, 200)
    await taken.call(alice, "nothing new", "GET", home, 304, If_None_Match=tag)
    await taken.call(ben, "somebody else's budget", "GET", home, 404)
    await taken.call(alice, "no id", "GET", "/budgets/1", 400)
    await taken.call(alice, "one event behind", "GET", f"{home}/delta?key=3", 200)
    await taken.call(alice, "from the start", "GET", f"{home}/delta", 200)
    await taken.call(alice, "a key of another history", "GET", f"{home}/delta?key=9", 409)
    await taken.call(alice, "the head", "GET", f"{home}/last-event-sequence", 200)
    await taken.call(alice, "alone", "GET", f"{home}/participants", 200)
    await taken.call(alice, "one category", "GET", f"{home}/categories", 200)
    await taken.call(alice, "a category", "GET", f"{home}/categories/{CATEGORY}", 200)
    await taken.call(alice, "no such category", "GET", f"{home}/categories/{NOWHERE}", 404)
    await taken.call(alice, "one expense", "GET", f"{home}/expenses", 200)
    await taken.call(alice, "an expense", "GET", f"{home}/expenses/{EXPENSE}", 200)
    await taken.call(alice, "no such expense", "GET", f"{home}/expenses/{NOWHERE}", 404)


async def _of_members(taken: Recorder, alice: AsyncClient, ben: AsyncClient) -> None:
    home = f"/budgets/{HOME}"
    members = f"{home}/participants"
    await taken.call(ben, "joined", "POST", f"{home}/join", 200)
    await taken.call(ben, "joined before", "GET", f"{home}/join", 200)
    await taken.call(ben, "no such budget", "POST", f"/budgets/{NOWHERE}/join", 404)
    await taken.call(alice, "a participant without an account", "GET", f"{members}/ben", 200)
    await taken.call(alice, "no participant", "GET", f"{members}/carol", 404)
    me = (await alice.get(home)).json()["createdBy"]
    await taken.call(ben, "the owner removes, nobody else", "DELETE", f"{members}/{me}", 403)
    await taken.call(alice, "the owner stays", "DELETE", f"{home}/leave", 409)


async def _of_doors(taken: Recorder, alice: AsyncClient, ben: AsyncClient) -> None:
    """What the owner hands out: the bare id, or an invite."""
    holiday = f"/budgets/{HOLIDAY}"
    link, invites = f"{holiday}/link-sharing", f"{holiday}/invites"
    await taken.call(alice, "the id is no link", "PUT", link, 200, {"enabled": False})
    await taken.call(alice, "neither on nor off", "PUT", link, 400, {"enabled": "no"})
    await taken.call(ben, "the id is no link", "POST", f"{holiday}/join", 404)
    once = {"expiresInS": 3600, "maxUses": 1}
    invite = await taken.call(alice, "for one, for an hour", "POST", invites, 201, once)
    await taken.call(alice, "for nobody", "POST", invites, 400, {"maxUses": 0})
    join = f"{holiday}/join?invite={invite['token']}"
    await taken.call(ben, "joined by an invite", "GET", join, 200)
    await taken.call(alice, "used", "GET", invites, 200)
    await taken.call(ben, "the owner invites, nobody else", "POST", invites, 403, {})
    revoke = f"{invites}/{invite['inviteId']}"
    await taken.call(alice, "revoked", "DELETE", revoke, 200)
    await taken.call(alice, "no such invite", "DELETE", f"{invites}/{NOWHERE}", 404)
    await taken.call(ben, "left", "DELETE", f"{holiday}/leave", 200)
    await taken.call(ben, "a former participant", "GET", holiday, 403)


async def _of_profiles(taken: Recorder, alice: AsyncClient, ben: AsyncClient) -> None:
    me = await taken.call(alice, "one's own", "GET", "/user", 200)
    await taken.call(ben, "no profile yet", "GET", "/user", 404)
    named = {"firstName": "Ben", "email": "ben@example.org"}
    await taken.call(ben, "a first profile", "PUT", "/user", 200, named)
    await taken.call(ben, "no e-mail", "PUT", "/user", 200, {"email": None})
    await taken.call(ben, "not an e-mail", "PUT", "/user", 400, {"email": "ben"})
    await taken.call(ben, "somebody else's", "GET", f"/profiles/{me['id']}", 200)
    await taken.call(ben, "nobody", "GET", "/profiles/nobody", 404)


async def _of_photos(taken: Recorder, alice: AsyncClient) -> None:
    url = f"/user/photo-upload-url?type=image/png&size={len(PHOTO)}"
    begun = await taken.call(alice, "a place for a photo", "GET", url, 200)
    await taken.call(alice, "no photo", "GET", "/user/photo-upload-url?type=text/plain&size=1", 400)
    confirm, legacy = "/user/confirm-photo-upload", "/user/photo-upload-confirm"
    confirmation = {"key": begun["key"]}
    await taken.call(alice, "before the upload", "POST", confirm, 404, confirmation)
    put = await alice.put(begun["url"], content=PHOTO, headers=begun["headers"])
    assert put.status_code == 200
    await taken.call(alice, "uploaded and confirmed", "POST", confirm, 201, confirmation)
    await taken.call(alice, "confirmed again", "PUT", legacy, 201, confirmation)
    await taken.call(alice, "no photo any more", "DELETE", "/user/profile-photo", 204)


async def _of_sockets(taken: Recorder, cluster: Cluster, node: Node, token: str) -> None:
    subscribe = {"type": "subscribe", "budgetId": HOME, "key": 3}
    ending = cluster.token("ben", ttl_s=59)
    async with (
        connect(node.url, token, way="frame") as device,
        connect(node.url, ending) as ben,
    ):
        taken.show("without a token in the request", {"type": "auth", "token": token}, "client")
        taken.show("welcome", device.of_type("welcome")[0])
        taken.show("signed in", device.of_type("auth")[0])
        await ben.wait_for(lambda: bool(ben.of_type("auth.expiring")))
        taken.show("a token is about to end", ben.of_type("auth.expiring")[0])
        await taken.ask(device, "from the fourth event on", subscribe, "subscribed")
        await device.reached(HOME, 5)
        taken.show("an edit, and somebody joins", device.of_type("events")[0])
        await device.wait_for(lambda: bool(device.of_type("presence")))
        edit = taken.event("budget.edit", version=1, title="Our home", details="The big one")
        frame = {"type": "events", "events": [edit], "mode": "each"}
        # Not by `ask`: the device knows only verdicts of what it posted itself.
        device.expect("e1", [edit], "each")
        await device.send({**frame, "id": "e1"})
        await device.verdicts("e1")
        taken.show("a change", {**frame, "id": "e1"}, "client")
        taken.show("its verdict", device.of_type("results")[-1])
        await device.reached(HOME, 6)
        taken.show("the change, to everybody", device.of_type("events")[-1])
        foreign = {"type": "subscribe", "budgetId": NOWHERE}
        await taken.ask(device, "no such budget", foreign, "there is none")
        await ben.subscribe(HOME, 6)
        await device.wait_for(lambda: len(device.of_type("presence")[-1]["users"]) == 2)
        both = device.of_type("presence")[-1]
        # Users are told in the order of their ids, which is another in every run.
        both["users"].sort(key=lambda user: user["userId"] != "ben")
        taken.show("both are here", both)
        await taken.ask(
            device, "no more of it", {"type": "unsubscribe", "budgetId": HOME}, "unsubscribed"
        )
        await taken.ask(device, "are you there", {"type": "ping"}, "yes")
        for received in [*device.frames, *ben.frames]:
            taken.documented.check_frame("server", received.body)
    for sent in taken.sent:
        taken.documented.check_frame(sent.sender, sent.frame)


async def _of_deletion(
    taken: Recorder, watch: Device, alice: AsyncClient, ben: AsyncClient
) -> None:
    home, log = f"/budgets/{HOME}", f"/events?budgetId={HOME}"
    removed = await taken.call(alice, "removed", "DELETE", f"{home}/participants/ben", 200)
    assert removed["userId"] == "ben"
    await taken.call(ben, "a former participant", "GET", f"{log}&key=6", 403)
    await taken.call(ben, "who was removed stays away", "POST", f"{home}/join", 403)
    changes = [
        taken.event("category.edit", recordId=CATEGORY, version=1, name="Groceries"),
        taken.event("expense.add", recordId=NOWHERE, amount="3", date="2026-11-22", note="bus"),
        taken.event("expense.delete", recordId=NOWHERE, version=1),
        taken.event("category.delete", recordId=CATEGORY, version=2),
        taken.event("budget.delete", version=2),
    ]
    await taken.call(alice, "the end", "POST", "/events", 200, {"events": changes})
    await taken.call(alice, "all of the log is left", "GET", f"{log}&key=6", 200)
    await taken.call(alice, "a deleted budget", "GET", home, 404)
    await watch.wait_for(lambda: bool(watch.of_type("unsubscribed")))
    taken.show("the budget was deleted", watch.of_type("unsubscribed")[0])


async def _of_closing(taken: Recorder, alice: AsyncClient, ben: AsyncClient) -> None:
    """Alice's account ends, and Ben inherits."""
    holiday = f"/budgets/{HOLIDAY}"
    shared = {"enabled": True}
    await taken.call(alice, "the id is a link", "PUT", f"{holiday}/link-sharing", 200, shared)
    await taken.call(ben, "back again, by the id", "POST", f"{holiday}/join", 200)
    await taken.call(alice, "the account is closed", "DELETE", "/user", 200)
    log = f"/events?budgetId={HOLIDAY}&key=4"
    await taken.call(ben, "the budget passes on", "GET", log, 200)


async def _of_leaving(taken: Recorder, cluster: Cluster) -> None:
    """What a hub says to clients that send too much, and when it stops."""
    node = await cluster.start(EVENTS_PER_S_CONNECTION="1")
    async with connect(node.url, cluster.token("carol")) as device:
        for _ in range(20):  # ten at once would be taken, and one more each second
            await device.send({"type": "ping", "id": "p"})
        await device.wait_for(lambda: bool(device.of_type("error")))
        taken.show("too much at once", device.of_type("error")[0])
        stopping = asyncio.create_task(node.stop())
        assert await device.until_closed() == 1012
        await stopping
        taken.show("a new version is deployed", device.of_type("goaway")[0])
        for received in device.frames:
            taken.documented.check_frame("server", received.body)
