"""What a config means in milliseconds, for `check`: the budgets that follow from it."""

from __future__ import annotations

from control.config import Config


def budgets(config: Config) -> list[str]:
    """A line each; no figure here is measured, all follow from the config."""
    period_ms, camera_ms = 1000 / config.control.rate_hz, 1000 / config.robot.camera_hz
    view_ms = config.view_period_ms
    fresh = config.freshness
    encode_ms = (fresh.hold_after_ms - period_ms - view_ms) / 2
    full_speed_ms = (fresh.slow_after_ms - period_ms - view_ms) / 2
    return [
        f"periods: control {period_ms:g} ms, camera {camera_ms:g} ms, robot host {1000 / config.robot.host_hz:g} ms",
        f"feature age when healthy: 2 x encode + {period_ms + view_ms:g} ms at most",
        f"encode may take {max(0, full_speed_ms):.0f} ms for full speed, {max(0, encode_ms):.0f} ms to run at all",
        f"features: slower from {fresh.slow_after_ms:g} ms, HOLD at {fresh.hold_after_ms:g} ms,"
        f" STOP past {fresh.stop_after_ms:g} ms",
        f"state: HOLD past {config.control.state_max_age_ms:g} ms; the robot holds by itself after"
        f" {config.robot.watchdog_ms:g} ms without an action",
        f"an instruction switch may take {config.control.switch_max_ms:g} ms before HOLD",
    ]
