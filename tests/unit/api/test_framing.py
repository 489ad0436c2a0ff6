"""Frames come out as they went in, however the bytes are cut, and nothing else comes out."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings, strategies as st

from api.sync.framing import BINARY, CLOSE, CONT, PING, PONG, TEXT, Frames, Received, Violation
from tests.masked import masked

MESSAGE_BYTES_MAX = 300
LARGE = 5_000


def raw(first: int, second: int, rest: bytes = b"") -> bytes:
    return bytes((first, second)) + rest


def all_of(frames: Frames) -> Iterator[Received]:
    while (frame := frames.next()) is not None:
        yield frame


def taken(data: bytes, *, cuts: Sequence[int] = ()) -> list[Received]:
    """What comes of these bytes, fed in the pieces between the cuts."""
    frames = Frames(MESSAGE_BYTES_MAX)
    found: list[Received] = []
    for begin, end in pairwise([0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]):
        frames.feed(data[begin:end])
        found += all_of(frames)
    return found


# What is sent, and what should come of it.

texts = st.text(max_size=80).map(str.encode)
controls = st.tuples(st.sampled_from((PING, PONG)), st.binary(max_size=125))


@st.composite
def messages(draw: st.DrawFn) -> tuple[bytes, list[Received]]:
    """One message in any number of fragments, with control frames between them; its bytes, and what
    should come of them."""
    opcode = draw(st.sampled_from((TEXT, BINARY)))
    data = draw(texts if opcode == TEXT else st.binary(max_size=80))
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=6)))
    parts = [data[begin:end] for begin, end in pairwise([0, *cuts, len(data)])]
    sent, due = b"", list[Received]()
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        sent += masked(CONT if number else opcode, part, fin=last)
        due.append((opcode, data) if last else (CONT, b""))
        if not last:
            for control in draw(st.lists(controls, max_size=2)):
                sent += masked(*control)
                due.append(control)
    return sent, due


streams = st.lists(
    st.one_of(messages(), controls.map(lambda control: (masked(*control), [control]))), max_size=6
)


def joined(stream: Sequence[tuple[bytes, list[Received]]]) -> bytes:
    return b"".join(sent for sent, _ in stream)


@settings(deadline=None)
@given(streams, st.data())
def test_what_comes_out_does_not_depend_on_cuts(
    stream: list[tuple[bytes, list[Received]]], data: st.DataObject
) -> None:
    sent = joined(stream)
    due = [frame for _, frames in stream for frame in frames]
    cuts = data.draw(st.lists(st.integers(0, len(sent)), max_size=20))
    assert taken(sent) == due
    assert taken(sent, cuts=cuts) == due
    assert taken(sent, cuts=range(len(sent))) == due


VIOLATIONS = {
    "not masked": (raw(0x81, 0x01, b"a"), 1002),
    "not masked, and so short that a masked head is longer": (raw(0x89, 0x01, b"a"), 1002),
    "first reserved bit": (raw(0xC1, 0x80), 1002),
    "second reserved bit": (raw(0xA1, 0x80), 1002),
    "third reserved bit": (raw(0x91, 0x80), 1002),
    "reserved opcode": (raw(0x83, 0x80), 1002),
    "reserved control opcode": (raw(0x8B, 0x80), 1002),
    "ping of 126 bytes": (raw(0x89, 0xFE), 1002),
    "ping in fragments": (raw(0x09, 0x80), 1002),
    "close in fragments": (raw(0x08, 0x80), 1002),
    "continuation of nothing": (raw(0x80, 0x80), 1002),
    "continuation after the last fragment": (
        masked(TEXT, b"a", fin=False) + masked(CONT, b"b") + masked(CONT, b"c"),
        1002,
    ),
    "message within a message": (masked(TEXT, b"a", fin=False) + masked(TEXT, b"b"), 1002),
    "too big by its head": (raw(0x81, 0xFE, (MESSAGE_BYTES_MAX + 1).to_bytes(2, "big")), 1009),
    "as big as can be said": (raw(0x81, 0xFF, b"\xff" * 8), 1009),
    "too big in fragments": (
        masked(TEXT, b" " * MESSAGE_BYTES_MAX, fin=False) + masked(CONT, b" "),
        1009,
    ),
    "not UTF-8": (masked(TEXT, b"\xff"), 1007),
    "half a surrogate pair": (masked(TEXT, b"\xed\xa0\x80"), 1007),
    "not UTF-8 by its fragments": (masked(TEXT, b"\xc3", fin=False) + masked(CONT, b"("), 1007),
    "cut off in a character": (masked(TEXT, b"\xf0\x9f", fin=False) + masked(CONT, b""), 1007),
}


@pytest.mark.parametrize("cut", [False, True], ids=["at once", "byte by byte"])
@pytest.mark.parametrize(("data", "code"), VIOLATIONS.values(), ids=VIOLATIONS)
def test_violations(data: bytes, code: int, cut: bool) -> None:
    """Found with the bytes at hand: for those whose head tells, nothing more is waited for."""
    pieces = [data[at : at + 1] for at in range(len(data))] if cut else [data]
    frames = Frames(MESSAGE_BYTES_MAX)
    with pytest.raises(Violation) as violation:
        for piece in pieces:
            frames.feed(piece)
            list(all_of(frames))
    assert violation.value.code == code


def test_exactly_as_big_as_allowed() -> None:
    data = b" " * MESSAGE_BYTES_MAX
    assert taken(masked(TEXT, data)) == [(TEXT, data)]
    parts = masked(TEXT, data[:100], fin=False) + masked(CONT, data[100:])
    assert taken(parts)[-1] == (TEXT, data)


def test_a_close_between_fragments_is_a_close() -> None:
    """RFC 6455 section 5.4 allows control frames there, and a close is one."""
    found = taken(masked(TEXT, b"a", fin=False) + masked(CLOSE, b"\x03\xe8"))
    assert found[-1] == (CLOSE, b"\x03\xe8")


def test_thousands_of_empty_fragments_are_held_in_nothing() -> None:
    frames = Frames(MESSAGE_BYTES_MAX)
    frames.feed(masked(TEXT, b"a", fin=False) + masked(CONT, b"", fin=False) * 10_000)
    assert len(list(all_of(frames))) == 10_001
    assert held(frames) <= 100
    frames.feed(masked(CONT, b"b"))
    assert frames.next() == (TEXT, b"ab")


# What is dropped


@settings(deadline=None)
@given(streams, st.binary(max_size=4), st.lists(st.integers(0, LARGE + 50), max_size=20))
def test_a_close_is_found_behind_all_kinds_of_frames(
    stream: list[tuple[bytes, list[Received]]], payload: bytes, cuts: list[int]
) -> None:
    """Also behind one that was too big, of which nothing is kept."""
    sent = joined(stream)
    sent += masked(BINARY, b"\x88" * LARGE) + raw(0x82, 0x03, b"\x88\x80\x88")
    frames = Frames(MESSAGE_BYTES_MAX)
    for begin, end in pairwise([0, *sorted(min(cut, len(sent)) for cut in cuts), len(sent)]):
        frames.feed(sent[begin:end])
        assert not frames.drop()
        assert held(frames) < 14  # the beginning of a head
    frames.feed(masked(CLOSE, payload))
    assert frames.drop()


# Any bytes at all


@settings(deadline=None, max_examples=100)
@given(st.lists(st.one_of(st.binary(max_size=200), streams.map(joined)), max_size=4))
def test_any_bytes_give_frames_or_a_violation(pieces: list[bytes]) -> None:
    """No other exception, and no more is held than was fed and a message may have."""
    frames, fed = Frames(MESSAGE_BYTES_MAX), 0
    for piece in pieces:
        frames.feed(piece)
        fed += len(piece)
        try:
            for opcode, data in all_of(frames):
                assert opcode in (TEXT, BINARY, CONT, PING, PONG, CLOSE)
                assert len(data) <= MESSAGE_BYTES_MAX
        except Violation as violation:
            assert violation.code in (1002, 1007, 1009)
            break
        assert held(frames) <= min(fed, 2 * MESSAGE_BYTES_MAX + 14)
    for piece in pieces:
        frames.drop()
        frames.feed(piece)


def held(frames: Frames) -> int:
    """Bytes of the peer that are kept."""
    return len(frames._buffer) + len(frames._message or b"")
