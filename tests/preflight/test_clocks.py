"""A clock that is off is named, and a slow machine is not taken for one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gpt2_ds.preflight.clocks import certain_skews, clocks
from gpt2_ds.preflight.verdicts import Verdict
from tests.preflight.facts import rank_facts


@given(
    skew=st.floats(-1000, 1000),
    rounds=st.lists(
        st.tuples(*[st.floats(0, 10)] * 4), min_size=1, max_size=5
    ),  # seconds that each of two ranks goes in before and comes out after the instant
)
def test_no_more_is_said_than_is_certain(
    skew: float, rounds: list[tuple[float, float, float, float]]
) -> None:
    first = [(100.0 * i - a, 100.0 * i + b) for i, (a, b, _, _) in enumerate(rounds)]
    second = [(100.0 * i - c + skew, 100.0 * i + d + skew) for i, (_, _, c, d) in enumerate(rounds)]
    mine, found = certain_skews([first, second])
    assert mine == 0
    assert found * skew >= 0
    assert abs(found) <= abs(skew) + 1e-6
    slack = min(max(a + d, b + c) for a, b, c, d in rounds)
    assert abs(found) >= abs(skew) - slack - 1e-6


def test_alone_there_is_nothing_to_compare() -> None:
    assert clocks([rank_facts(0, 0, 1)], lambda: 0.0).verdict is Verdict.OK
