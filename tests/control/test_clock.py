import pytest

from control.clock import NS_PER_MS, FakeClock, MonotonicClock, Pacer

PERIOD_NS = 100 * NS_PER_MS


def paced(clock, work_ns):
    """Deadlines, tick times and misses of a loop whose n-th tick works `work_ns[n]`."""
    pacer, ticks = Pacer(clock, PERIOD_NS), []
    for work in work_ns:
        tick = pacer.wait()
        ticks.append((tick, clock.now_ns()))
        clock.advance(work)
    return ticks


def test_deadlines_lie_on_one_grid_whatever_the_work_costs():
    ticks = paced(FakeClock(), [30 * NS_PER_MS] * 50)
    start_ns = ticks[0][0].deadline_ns
    assert [tick.deadline_ns - start_ns for tick, _ in ticks] == [n * PERIOD_NS for n in range(50)]
    assert sum(tick.missed for tick, _ in ticks) == 0


def test_an_overrun_skips_the_missed_points_counts_them_and_keeps_the_phase():
    ticks = paced(FakeClock(), [0, 370 * NS_PER_MS, 0, 0])
    start_ns = ticks[0][0].deadline_ns
    assert [(tick.deadline_ns - start_ns) // PERIOD_NS for tick, _ in ticks] == [0, 1, 5, 6]
    assert [tick.missed for tick, _ in ticks] == [0, 0, 3, 0]


@pytest.mark.parametrize("work_ms", [10, 101, 120, 126, 149, 199, 201, 260, 1000])
def test_two_ticks_are_never_closer_than_three_quarters_of_a_period(work_ms):
    ticks = paced(FakeClock(), [work_ms * NS_PER_MS, 0, 0, work_ms * NS_PER_MS, 0])
    times = [time_ns for _, time_ns in ticks]
    assert min(b - a for a, b in zip(times, times[1:], strict=False)) >= 0.75 * PERIOD_NS


def test_a_wake_up_that_comes_too_late_gives_its_point_up():
    class SleepyClock(FakeClock):
        naps = 0

        def sleep_until(self, deadline_ns):
            self.naps += 1
            super().sleep_until(deadline_ns + (60 * NS_PER_MS if self.naps == 3 else 0))

    ticks = paced(SleepyClock(), [0] * 5)
    assert [tick.missed for tick, _ in ticks] == [0, 0, 1, 0, 0]
    assert all(tick.lateness_ns == 0 for tick, _ in ticks)


def test_the_idle_callback_gets_the_deadline_and_only_when_there_is_time():
    clock, deadlines = FakeClock(), []
    pacer = Pacer(clock, PERIOD_NS, idle=deadlines.append)
    first = pacer.wait()
    clock.advance(PERIOD_NS)
    second = pacer.wait()
    assert deadlines == [first.deadline_ns]
    assert second.deadline_ns == first.deadline_ns + PERIOD_NS


def test_a_period_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="period must be positive, got 0 ns"):
        Pacer(FakeClock(), 0)


@pytest.mark.parametrize("rate_hz", [1, 10, 100])
def test_the_real_clock_holds_its_grid(rate_hz):
    clock = MonotonicClock()
    pacer = Pacer(clock, round(1e9 / rate_hz))
    first = pacer.wait()
    points = 2 if rate_hz == 1 else 20
    for _ in range(points):
        last = pacer.wait()
    assert (last.deadline_ns - first.deadline_ns) % round(1e9 / rate_hz) == 0
    assert last.deadline_ns - first.deadline_ns >= points * round(1e9 / rate_hz)
    assert clock.now_ns() >= last.deadline_ns
