"""Presence: who is where, counted from what the nodes say of themselves."""

from collections import Counter

from hypothesis import given, settings, strategies as st

from hub.feed.presence import Presence

A, B = b"a" * 16, b"b" * 16


def test_devices_of_a_user_are_counted() -> None:
    presence = Presence()
    for user in ("ann", "bob", "ann"):
        presence.came(user)
    assert presence.users() == {"ann": 2, "bob": 1}
    presence.left("ann")
    assert presence.users() == {"ann": 1, "bob": 1}
    presence.left("ann")
    assert presence.users() == {"bob": 1}


def test_every_coming_and_going_is_news_for_the_others() -> None:
    presence = Presence()
    assert not presence.moved
    presence.came("ann")
    assert presence.moved
    presence.moved = False
    presence.left("ann")
    assert presence.moved


def test_what_a_node_says_replaces_what_it_said() -> None:
    presence = Presence()
    presence.came("ann")
    assert presence.heard(A, {"bob": 2, "ann": 1})
    assert presence.heard(B, {"bob": 1})
    assert presence.users() == {"ann": 2, "bob": 3}
    assert presence.heard(A, {"cid": 1})
    assert presence.users() == {"ann": 1, "bob": 1, "cid": 1}


def test_only_a_change_is_news() -> None:
    presence = Presence()
    assert not presence.heard(A, {})
    assert presence.heard(A, {"bob": 1})
    assert not presence.heard(A, {"bob": 1})
    assert presence.heard(A, {"bob": 2})
    assert presence.heard(A, {})
    assert not presence.heard(A, {})


def test_what_other_nodes_say_is_not_told_as_ours() -> None:
    presence = Presence()
    presence.heard(A, {"bob": 1})
    assert presence.here == {}
    assert not presence.moved


def test_a_silent_node_takes_its_users_with_it() -> None:
    presence = Presence()
    presence.came("ann")
    presence.heard(A, {"bob": 1})
    presence.heard(B, {"bob": 1})
    assert presence.silent(A)
    assert presence.users() == {"ann": 1, "bob": 1}
    assert not presence.silent(A)


def test_users_come_in_the_order_of_their_ids() -> None:
    """So that equal presence is equal bytes."""
    presence = Presence()
    presence.heard(A, {"zoe": 1, "bob": 1})
    for user in ("dan", "ann"):
        presence.came(user)
    assert list(presence.users()) == ["ann", "bob", "dan", "zoe"]


_USERS = st.sampled_from(["ann", "bob", "cid"])
_HAPPENINGS = st.lists(
    st.one_of(
        st.tuples(st.just("came"), _USERS),
        st.tuples(st.just("left"), _USERS),
        st.tuples(st.sampled_from([A, B]), st.dictionaries(_USERS, st.integers(1, 3), max_size=3)),
    ),
    max_size=40,
)


@settings(deadline=None)
@given(_HAPPENINGS)
def test_presence_is_the_sum_of_all_nodes(
    happenings: list[tuple[str, str] | tuple[bytes, dict[str, int]]],
) -> None:
    presence = Presence()
    here = Counter[str]()
    elsewhere = {A: Counter[str](), B: Counter[str]()}
    for what, whom in happenings:
        if isinstance(what, bytes):
            assert not isinstance(whom, str)
            assert presence.heard(what, whom) == (elsewhere[what] != Counter(whom))
            elsewhere[what] = Counter(whom)
        elif isinstance(whom, str):
            if what == "came":
                presence.came(whom)
                here[whom] += 1
            elif here[whom]:
                presence.left(whom)
                here[whom] -= 1
        assert presence.here == +here
        assert presence.users() == dict(here + elsewhere[A] + elsewhere[B])
