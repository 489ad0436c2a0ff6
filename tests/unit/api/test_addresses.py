"""A request is counted by the address that sent it, which nobody can choose (P8)."""

import pytest

from api.http.addresses import UNKNOWN, sender


def asked_by(peer: str | None, *forwarded_for: str, proxies: int = 0) -> str:
    headers = [(b"x-forwarded-for", value.encode()) for value in forwarded_for]
    return sender(None if peer is None else (peer, 1234), headers, proxies)


def test_without_proxies_of_ours_it_is_the_peer_whatever_the_header_says() -> None:
    assert asked_by("192.0.2.1", "198.51.100.7") == "192.0.2.1"


@pytest.mark.parametrize(
    ("forwarded_for", "proxies", "address"),
    [
        (["198.51.100.7"], 1, "198.51.100.7"),
        (["203.0.113.9, 198.51.100.7"], 1, "198.51.100.7"),  # the first was made up by the client
        (["203.0.113.9", "198.51.100.7"], 1, "198.51.100.7"),  # in headers of their own
        (["203.0.113.9, 198.51.100.7,10.0.0.2"], 2, "198.51.100.7"),
        (["198.51.100.7"], 2, "198.51.100.7"),  # it came in behind the outer proxy
        (["198.51.100.7:4711"], 1, "198.51.100.7"),
        (["[2001:db8::1]:4711"], 1, "2001:db8::/64"),
        ([], 1, "10.0.0.1"),
        (["unknown"], 1, "10.0.0.1"),
        ([""], 1, "10.0.0.1"),
        (["203.0.113.9, "], 1, "10.0.0.1"),
    ],
)
def test_behind_proxies_it_is_what_the_outermost_of_ours_saw(
    forwarded_for: list[str], proxies: int, address: str
) -> None:
    assert asked_by("10.0.0.1", *forwarded_for, proxies=proxies) == address


def test_an_ipv6_network_is_one_sender() -> None:
    first, same, other = (
        asked_by(address)
        for address in ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", "2001:db8:0:2::1")
    )
    assert first == same != other
    assert asked_by("::ffff:192.0.2.1") == "192.0.2.1"


def test_a_unix_socket_has_no_address() -> None:
    assert asked_by(None) == UNKNOWN
