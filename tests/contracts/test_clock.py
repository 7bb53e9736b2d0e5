"""What every Clock must keep."""

import pytest

from control.clock import NS_PER_MS, FakeClock, MonotonicClock


@pytest.fixture(params=[MonotonicClock, FakeClock])
def clock(request):
    return request.param()


def test_time_never_goes_back(clock):
    times = [clock.now_ns() for _ in range(100)]
    assert times == sorted(times)


def test_sleep_until_returns_at_or_after_the_deadline(clock):
    deadline_ns = clock.now_ns() + 3 * NS_PER_MS
    clock.sleep_until(deadline_ns)
    assert clock.now_ns() >= deadline_ns


def test_a_deadline_in_the_past_returns_at_once_and_moves_nothing_back(clock):
    now_ns = clock.now_ns()
    clock.sleep_until(now_ns - 1000 * NS_PER_MS)
    assert clock.now_ns() >= now_ns


def test_a_fake_clock_refuses_to_go_back():
    with pytest.raises(ValueError, match="cannot go back"):
        FakeClock().advance(-1)
