"""A bounded dictionary forgets what was set or used longest ago."""

from hub.recent import Recent


def test_above_its_size_the_oldest_is_forgotten() -> None:
    recent: Recent[str, int] = Recent(2)
    for number, name in enumerate("abc"):
        recent[name] = number
    assert list(recent.items()) == [("b", 1), ("c", 2)]


def test_what_is_set_again_or_used_stays() -> None:
    recent: Recent[str, int] = Recent(2)
    recent["a"] = recent["b"] = 0
    recent["a"] = 1
    recent["c"] = 2
    assert list(recent) == ["a", "c"]
    assert recent.use("a") == 1
    recent["d"] = 3
    assert list(recent) == ["a", "d"]


def test_what_is_not_there_is_not_used() -> None:
    assert Recent[str, int](2).use("a") is None
