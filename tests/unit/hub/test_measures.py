"""What the hub counts: bounded, whatever clients send, and histograms as Prometheus means them."""

from itertools import accumulate

from hypothesis import given, strategies as st

from hub.budget.verdicts import Verdict
from hub.errors import Code
from hub.measures import DELIVERY_S, Histogram, Measures

values = st.one_of(st.floats(0, 100), st.sampled_from(DELIVERY_S))


@given(st.lists(st.tuples(values, st.integers(1, 5))))
def test_a_bucket_counts_what_is_at_most_its_bound(observed: list[tuple[float, int]]) -> None:
    histogram = Histogram(DELIVERY_S)
    for value, times in observed:
        histogram.observe(value, times)
    *cumulative, everything = accumulate(histogram.counts)
    for bound, count in zip(DELIVERY_S, cumulative, strict=True):
        assert count == sum(times for value, times in observed if value <= bound)
    assert everything == sum(times for _, times in observed)


def test_types_that_clients_made_up_are_one() -> None:
    measures = Measures()
    for number in range(100):
        measures.settled(rejected(f"made.up.{number}", Code.INVALID_EVENT))
    measures.settled(rejected(None, Code.INVALID_EVENT))
    assert measures.verdicts == {("invalid", "rejected"): 101}
    assert measures.rejections == {"INVALID_EVENT": 101}


def test_a_duplicate_is_no_second_acceptance() -> None:
    measures = Measures()
    first = Verdict("e", "expense.add", "b", "r", "accepted", sequence=1, version=1, record=b"{}")
    measures.settled(first)
    measures.settled(first._replace(duplicate=True))
    assert measures.verdicts == {("expense.add", "accepted"): 1, ("expense.add", "duplicate"): 1}


def rejected(event_type: str | None, code: Code) -> Verdict:
    return Verdict("e", event_type, None, None, "rejected", error=code)
