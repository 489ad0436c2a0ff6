"""Where a request comes from: the address that its sender is counted by."""

from asyncio import BaseTransport
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

IPV6_PREFIX = 64  # what one subscriber gets, and can take a new address from for each request
UNKNOWN = "unknown"  # a peer without an address, on a Unix socket
ADDRESS = "budget_hub.address"  # where a request's scope has it, noted by the guard


def sender(
    peer: tuple[str, int] | None, headers: Iterable[tuple[bytes, bytes]], trusted_proxies: int
) -> str:
    """The address that sent the request past `trusted_proxies` proxies of our own, as `group`
    gives it; `peer` is the other end of the connection. With no such proxy, headers are not looked
    at: anybody can write them."""
    address = forwarded(headers, trusted_proxies) or (peer and _parsed(peer[0]))
    return UNKNOWN if address is None else group(address)


def peer_of(transport: BaseTransport) -> tuple[str, int] | None:
    """The other end; None on a Unix socket."""
    name = transport.get_extra_info("peername")
    return (name[0], name[1]) if isinstance(name, tuple) else None


def forwarded(
    headers: Iterable[tuple[bytes, bytes]], trusted_proxies: int
) -> IPv4Address | IPv6Address | None:
    """The address that the outermost of our proxies saw, by `X-Forwarded-For`.

    Each proxy appends its caller's address, so ours are at the end, and what stands before them
    was written by the client. None where no proxy wrote anything, or no address."""
    if not trusted_proxies:
        return None
    seen: Sequence[str] = [
        entry.strip()
        for name, value in headers
        if name == b"x-forwarded-for"
        for entry in value.decode("latin-1").split(",")
    ]
    # Fewer entries than proxies: it came in further inside, so that all of them are ours.
    return _parsed(seen[-min(trusted_proxies, len(seen))]) if seen else None


def group(address: IPv4Address | IPv6Address) -> str:
    """The address, or of an IPv6 address its network."""
    if isinstance(address, IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(IPv6Network((int(address), IPV6_PREFIX), strict=False))


def _parsed(text: str) -> IPv4Address | IPv6Address | None:
    """The address in `1.2.3.4`, `1.2.3.4:80`, `2001:db8::1` or `[2001:db8::1]:80`."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return ip_address(text)
    except ValueError:
        return None
