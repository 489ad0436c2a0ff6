"""Tokens that were verified are remembered: for how long, how many, and what is asked only once."""

import asyncio

import pytest
from hypothesis import given, strategies as st

from api.auth.token_cache import CachedTokens, TokenCache, token_hash
from hub.errors import Code, HubError
from hub.ports import Principal

NOW_MS = 1_795_257_600_000
NOW_S = 1000.0  # steady


def principal(
    user_id: str, issued_at_ms: int, ends_in_s: float = 1.0, now_s: float = NOW_S
) -> Principal:
    expires_at_ms = NOW_MS - 5000  # what the token says is for its client
    return Principal(user_id, expires_at_ms, issued_at_ms, now_s + ends_in_s)


ANN = principal("ann", NOW_MS)


class Clock:
    now_s = NOW_S

    def __call__(self) -> float:
        return self.now_s


class Slow:
    """Verifies when it is told to. A token is its user's name; `bad` and `late` are refused."""

    def __init__(self, clock: Clock) -> None:
        self.asked: list[str] = []
        self.may = asyncio.Event()
        self.may.set()
        self._clock = clock

    async def authenticate(self, token: str, address: str = "") -> Principal:
        self.asked.append(token)
        await self.may.wait()
        if token == "bad":
            raise HubError(Code.NOT_LOGGED_IN, "detail")
        if token == "late":
            raise HubError(Code.UNAVAILABLE)
        if token == "defect":
            raise ZeroDivisionError
        return principal(token, NOW_MS, now_s=self._clock.now_s)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def slow(clock: Clock) -> Slow:
    return Slow(clock)


@pytest.fixture
def tokens(slow: Slow, clock: Clock) -> CachedTokens:
    return CachedTokens(slow, now_s=clock, tokens_max=3, verifying_max=2)


def test_a_token_counts_up_to_its_end() -> None:
    cache = TokenCache(10)
    key = token_hash("a")
    cache.put(key, ANN)
    assert cache.get(key, NOW_S + 0.999) == ANN
    assert cache.get(key, NOW_S + 1) is None
    assert cache.get(key, NOW_S) is None  # it is forgotten
    assert len(cache) == 0


def test_p8_the_one_not_asked_for_longest_is_forgotten() -> None:
    cache = TokenCache(2)
    first, second, third = (token_hash(name) for name in "abc")
    cache.put(first, ANN)
    cache.put(second, ANN)
    assert cache.get(first, NOW_S)
    cache.put(third, ANN)
    assert [bool(cache.get(key, NOW_S)) for key in (first, second, third)] == [True, False, True]


def test_only_tokens_from_before_are_revoked() -> None:
    cache = TokenCache(10)
    old, new, other = (token_hash(name) for name in "abc")
    cache.put(old, ANN)
    cache.put(new, ANN._replace(issued_at_ms=NOW_MS + 1))
    cache.put(other, ANN._replace(user_id="bob"))
    cache.revoke({"ann": NOW_MS + 1})
    assert [bool(cache.get(key, NOW_S)) for key in (old, new, other)] == [False, True, True]


def test_users_are_those_whose_tokens_count() -> None:
    cache = TokenCache(10)
    cache.put(token_hash("a"), ANN)
    cache.put(token_hash("b"), principal("bob", NOW_MS, ends_in_s=2))
    assert cache.users(NOW_S) == {"ann", "bob"}
    assert cache.users(NOW_S + 1) == {"bob"}
    assert len(cache) == 1


def test_p9_no_token_is_kept() -> None:
    cache = TokenCache(10)
    cache.put(token_hash("the-token-itself"), ANN)
    assert "the-token-itself" not in repr(vars(cache))
    assert len(token_hash("the-token-itself")) == 32


@given(
    st.lists(
        st.tuples(st.sampled_from("put get users revoke".split()), st.integers(0, 9)), max_size=60
    )
)
def test_a_cache_never_says_more_than_it_was_told(steps: list[tuple[str, int]]) -> None:
    """Against a plain dictionary that forgets nothing: what the cache says is right, and it is
    bounded."""
    cache, model, now_ms, now_s = TokenCache(4), dict[str, Principal](), NOW_MS, NOW_S
    for at, (step, number) in enumerate(steps):
        name = str(number)
        now_ms += 1
        now_s += 0.1
        if step == "put":
            model[name] = principal(f"user-{number % 3}", now_ms - at % 5, number, now_s)
            cache.put(token_hash(name), model[name])
        elif step == "get":
            said = cache.get(token_hash(name), now_s)
            assert said is None or (said == model[name] and now_s < said.ends_at_s)
        elif step == "users":
            counting = {who.user_id for who in model.values() if now_s < who.ends_at_s}
            assert cache.users(now_s) <= counting
        else:
            revoked = {f"user-{number % 3}": now_ms}
            cache.revoke(revoked)
            model = {
                name: who
                for name, who in model.items()
                if who.issued_at_ms >= revoked.get(who.user_id, 0)
            }
        assert len(cache) <= 4


async def test_of_many_at_once_one_asks(tokens: CachedTokens, slow: Slow) -> None:
    slow.may.clear()
    asking = [asyncio.create_task(tokens.authenticate("ann")) for _ in range(50)]
    await asyncio.sleep(0)
    asking[0].cancel()  # who asked first is gone: the others get their answer
    slow.may.set()
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert {who.user_id for who in answers[1:] if isinstance(who, Principal)} == {"ann"}
    assert len({id(who) for who in answers[1:]}) == 1
    await tokens.authenticate("ann")
    assert slow.asked == ["ann"]


async def test_a_token_is_asked_for_again_after_its_end(
    tokens: CachedTokens, slow: Slow, clock: Clock
) -> None:
    await tokens.authenticate("ann")
    clock.now_s += 1
    await tokens.authenticate("ann")
    assert slow.asked == ["ann", "ann"]


@pytest.mark.parametrize(
    ("token", "code"), [("bad", Code.NOT_LOGGED_IN), ("late", Code.UNAVAILABLE)]
)
async def test_a_refusal_is_shared_but_not_remembered(
    tokens: CachedTokens, slow: Slow, token: str, code: Code
) -> None:
    slow.may.clear()
    asking = [asyncio.create_task(tokens.authenticate(token)) for _ in range(3)]
    await asyncio.sleep(0)
    slow.may.set()
    refusals = await asyncio.gather(*asking, return_exceptions=True)
    assert [error.code for error in refusals if isinstance(error, HubError)] == [code] * 3
    assert len({id(error) for error in refusals}) == 3  # each its own, with its own traceback
    assert slow.asked == [token]
    await refused(tokens, token, code)
    assert slow.asked == [token, token]


async def test_p8_verifications_are_bounded(tokens: CachedTokens, slow: Slow) -> None:
    slow.may.clear()
    asking = [asyncio.create_task(tokens.authenticate(name)) for name in ("ann", "bob")]
    await asyncio.sleep(0)
    await refused(tokens, "cid", Code.BUSY)
    also = asyncio.create_task(tokens.authenticate("ann"))  # is being verified: costs nothing
    await asyncio.sleep(0)
    slow.may.set()
    assert [who.user_id for who in await asyncio.gather(*asking, also)] == ["ann", "bob", "ann"]
    assert (await tokens.authenticate("cid")).user_id == "cid"


@pytest.mark.parametrize("token", ["x" * 8193, "é", "\ud800"])
async def test_what_can_be_no_token_is_asked_of_nobody(
    tokens: CachedTokens, slow: Slow, token: str
) -> None:
    await refused(tokens, token, Code.NOT_LOGGED_IN)
    assert slow.asked == []


async def test_a_defect_is_no_refusal_and_blocks_nothing(tokens: CachedTokens) -> None:
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            await tokens.authenticate("defect")
    assert (await tokens.authenticate("ann")).user_id == "ann"


async def test_closing_leaves_nobody_waiting(tokens: CachedTokens, slow: Slow) -> None:
    slow.may.clear()
    asking = asyncio.create_task(tokens.authenticate("ann"))
    await asyncio.sleep(0)
    await tokens.close()
    with pytest.raises(asyncio.CancelledError):
        await asking


async def refused(tokens: CachedTokens, token: str, code: Code) -> None:
    with pytest.raises(HubError) as refusal:
        await tokens.authenticate(token)
    assert refusal.value.code is code
