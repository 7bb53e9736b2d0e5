"""How the scripted expert gets a block between its fingers: around it, closed, and turned on where corners are felt.

Letters: N situations.
"""

from __future__ import annotations

import numpy as np

from sim.situation import GRASP, HALF, HELD_OPENING, TRAVEL_HEIGHT, Goal, Situation, over, smoothstep

OPEN, SQUEEZE = 0.080, 0.020  # m, openings: wide, on a block
ABOVE = 0.012  # m, over a block, where fingers wait that are not open yet or not centred
# m, of the tip: above any that holds a block. Fingers half open in mid-air look like ones that have just gripped, until
# features show it: they rise to here while they open. A head that learnt to open on the way down stood at 0.12 m with
# fingers at 42 mm and features a second old (told the truth, 9 of 25 picks; 24 at 100 ms).
OPENING_HEIGHT = 0.225
# m: fingers that are turned 0.6 rad or more off the faces of a block squeeze its corners and stop at 65.1 to 66.9. Up
# to 0.55 they turn it to themselves, and close to 48.
ON_CORNERS = 0.0642
# rad: a step of turning on; the most around a block, then they rise and turn on to the end; the most as they go down.
TURN_ON, ROLL_MAX, ROLL_END, ROLL_ABOVE = 0.45, 1.86, 2.2, 0.3
# m, of the tip over the centre of the block, and rad a step: fingers that stand there, on a neighbour or on a corner,
# turn until they fit beside it, or have dragged it away.
STANDS, STANDS_WITHIN, TURN_STANDING = 0.0230, 0.0040, 0.20
# rad: every eighth of a turn there is a span of the roll in which the fingers close; between two of them they turn on.
# As long as they feel no faces, they drift through the span.
SPAN, SPAN_FROM, SPAN_EVERY, DRIFT = 0.39, -0.10, np.pi / 4, 0.15


def grip(now: Situation, tip: np.ndarray) -> Goal:
    """To the block with open fingers, around it, and closed; on corners open again, turned on, and closed again.

    The fingers open 1 cm wider than a block is from corner to corner, so they need not be turned to go down around it.
    How a block is turned is felt, not seen: on corners the fingers stop at 65 to 67 mm, on faces at 48. They drift as
    they close, and where a span of the roll ends without faces felt, they open and turn on to the next one: so the
    roll tells what was tried, and nothing is remembered. That a finger stands on something is felt too, by the height
    at which the tip stays: next to another block, 50, 62 and 80 mm from centre to centre, 49 of 72 picks and stacks
    came about within 15 s without that, and 62 with it; most failures of a policy at stacking ended there, after a
    block had fallen beside the other. Laws that were not learnt: to the faces at once (wants to see how a block lies
    that is 17 pixels wide: hardly learnt in hours, 13 of 60 picks ended standing still between closing and turning);
    a span of 0.15 rad (a head that practised it closed nowhere: 8 of 20 told the truth); turning while the fingers
    loosen, with no span (it stood where that ends and closing begins, turning for good: 6 of 14); to turn on wherever
    64 to 68 mm are read (a head read them on the way past: 21 of 25, hunting from span to span); to stop at 1.5 rad
    and rise from there, slowly at first (it stood there: 18 of 25, and 23 with 75 minutes less).
    """
    block, roll, opening = now.block, now.q[:, 5], now.q[:, 6]
    low = np.maximum(block[:, 2] + GRASP, 0.010)
    distance = np.hypot(*(block[:, :2] - tip[:, :2]).T)
    closing = opening < 0.068
    around = np.where(closing, distance < 0.020, distance < 0.014) & (tip[:, 2] < low + 0.014) & (opening > 0.036)
    is_spent = np.abs(roll) > ROLL_MAX
    is_between = (roll - SPAN_FROM) % SPAN_EVERY > SPAN
    feels_none = around & (opening > ON_CORNERS)
    turning = feels_none & is_between | is_spent
    turn = np.where(turning, np.minimum(roll + TURN_ON, ROLL_END), roll + np.where(feels_none, DRIFT, 0.0))
    stands = (opening > 0.072) & (distance < 0.030) & (np.abs(tip[:, 2] - block[:, 2] - STANDS) < STANDS_WITHIN)
    turn = np.where(stands & ~is_spent, roll + TURN_STANDING, turn)
    turn *= 1 - smoothstep(tip[:, 2], 0.054, 0.070)  # above the blocks back to none
    unready = 1 - smoothstep(opening, 0.062, 0.074)  # open before the fingers are down: else one lands on the block
    unready = np.maximum(unready, smoothstep(distance, 0.004, 0.012))  # and centred: 6 mm are left beside a corner
    most = ROLL_MAX + (ROLL_ABOVE - ROLL_MAX) * smoothstep(tip[:, 2], 0.054, 0.060)
    unready = np.maximum(unready, smoothstep(np.abs(roll) - most, 0.0, 0.1))  # one that turned along: up, and back
    bottom = np.where(around & ~is_spent, low, low + unready * np.clip(block[:, 2] + HALF + ABOVE - low, 0.0, None))
    goal = over(tip, block[:, :2], bottom, TRAVEL_HEIGHT, 0.010, 0.065)
    narrow = np.where(around, 0.0, 1 - smoothstep(opening, HELD_OPENING, 0.0635))
    goal[:, 2] += narrow * (OPENING_HEIGHT - goal[:, 2])
    return Goal(goal, turn, np.where(around & ~turning, SQUEEZE, OPEN))
