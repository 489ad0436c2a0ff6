"""Rate limits of one process: fixed windows, bounded in memory."""

from storage.redis.rate_limits import Limit, Windows

FIVE = Limit("user", 5)
NOW_S = 1_000_000_000.0


def test_a_window_begins_with_the_first_and_takes_no_more_than_the_limit() -> None:
    windows = Windows(10)
    assert [windows.take(FIVE, "ada", NOW_S) for _ in range(6)] == [0, 0, 0, 0, 0, 60]
    assert windows.take(FIVE, "ada", NOW_S + 45) == 15
    assert windows.take(FIVE, "bob", NOW_S + 45) == 0
    assert windows.take(FIVE, "ada", NOW_S + 60) == 0


def test_p8_memory_is_bounded_and_the_oldest_go_first() -> None:
    windows = Windows(10)
    for number in range(25):
        for _ in range(5):
            assert windows.take(FIVE, f"key-{number}", NOW_S + number) == 0
    assert len(windows) == 10
    assert windows.take(FIVE, "key-15", NOW_S + 25) == 50
    assert windows.take(FIVE, "key-14", NOW_S + 25) == 0  # forgotten
    assert windows.take(FIVE, "one more", NOW_S + 100) == 0
    assert len(windows) == 1  # what has ended makes room
