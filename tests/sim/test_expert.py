"""The expert closed-loop at 10 Hz on the real physics, and the shape of its law."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from sim import expert, kinematics, tasks
from sim.following import Following
from sim.grip import OPEN, OPENING_HEIGHT
from sim.judging import LIMIT_S
from sim.kinematics import tip_position, tool_down
from sim.placement import place_blocks
from sim.scene import BIN_CENTRE, BLOCK_SIZE, COLOURS
from sim.situation import GRASP, HELD_OPENING, TRAVEL_HEIGHT, Situation, held
from sim.tabletop import HOME
from sim.tasks import KINDS, Task

Z = BLOCK_SIZE / 2
ROW = np.array([(0.36, y, Z, 0.0) for y in (-0.18, -0.06, 0.06, 0.18)])  # red, green, blue, yellow


def follow(bench, task: Task, seconds: float) -> bool | None:
    """Do what the expert says, moving as a live robot does, until the task is done or time is up."""
    arm = Following(bench.robot, bench.clock, 0.1)
    for _ in range(round(seconds / 0.1)):
        state = bench.robot.read_state()
        if bench.robot.is_over:
            break
        now = Situation.of(state[None], bench.robot.block_poses[None], [task])
        arm.aim(expert.next_target(now, 0.1)[0], state)
        arm.advance(100_000_000)
    return bench.robot.judge()


def do(bench, text: str, seconds: float | None = None) -> bool | None:
    task = bench.say(text)
    return follow(bench, task, LIMIT_S[task.kind] if seconds is None else seconds)


def holds(bench) -> str | None:
    index = int(held(bench.robot.read_state()[None], bench.robot.block_poses[None])[0])
    return None if index < 0 else COLOURS[index]


def random_situations(count: int, seed: int = 0, tip_low: float = 0.0) -> Situation:
    """Any task, any pose of the arm whose tip is over the table, any places of the blocks; half stand at a block."""
    rng = np.random.default_rng(seed)
    blocks = place_blocks(rng, count)
    tip = rng.uniform((0.15, -0.35, tip_low), (0.58, 0.35, 0.35), (count, 3))
    near = rng.random(count) < 0.5
    tip[near, :2] = blocks[near, 0, :2] + rng.normal(0.0, 0.02, (near.sum(), 2))
    q = tool_down(tip, rng.uniform(0.0, 0.08, count)) + rng.normal(0.0, (0, 0, 0, 0.1, 0.05, 0.6, 0), (count, 7))
    q = np.clip(q, kinematics.LOW, kinematics.HIGH)
    return Situation.of(q, blocks, [tasks.sample_task(rng) for _ in range(count)])


@pytest.mark.parametrize("kind", KINDS)
def test_from_home_the_expert_does_ten_of_ten(bench, kind):
    done = []
    for seed, _, text in tasks.episodes(7, 10, "seen", (kind,)):
        bench.robot.reset(seed)
        done.append(do(bench, text))
    assert done == [True] * 10


@pytest.mark.parametrize("kind", KINDS)
def test_from_any_pose_above_the_table_the_expert_recovers(bench, kind):
    rng = np.random.default_rng(KINDS.index(kind))
    done = []
    while len(done) < 10:
        bench.robot.reset(int(rng.integers(2**31)))
        tip = rng.uniform((0.18, -0.32, 0.06), (0.56, 0.32, 0.32))
        q = tool_down(tip[None], rng.uniform(0.0, 0.08))[0] + rng.normal(0.0, (0, 0, 0, 0.15, 0.1, 0.6, 0))
        bench.robot.pose(q)
        if bench.robot.deepest_arm_contact() > 0:
            continue
        task = tasks.sample_task(rng, (kind,))
        done.append(do(bench, tasks.sample_wording(rng, task)))
    assert done == [True] * 10


@pytest.mark.parametrize("degrees", range(-45, 50, 5))
def test_a_block_that_lies_turned_is_gripped_by_feel(bench, degrees):
    """Where the fingers stop on corners they turn on."""
    xy = ROW[0, :2]
    blocks = np.array([[*xy, 0.024, np.arctan2(*xy[::-1]) + np.radians(degrees)], *ROW[1:]])
    bench.robot.pose(tool_down(np.array([[*xy, 0.10]]), 0.08)[0], blocks)
    assert follow(bench, bench.say("pick up the red block"), 6.0) is True
    if not 27 < abs(degrees) < 37:  # there it may go either way
        assert (bench.robot.read_state()[5] > 0.2) == (abs(degrees) > 32)


@pytest.mark.parametrize("degrees", (75, 90, 105, 120, 285, 300))
def test_a_block_is_gripped_although_a_finger_stands_on_the_one_beside_it(bench, degrees):
    """Turned as they go down, the fingers would come to lie on the other one: they turn until they do not."""
    direction = np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])
    red = np.array([0.36, -0.08])
    blocks = np.array([[*red, Z, np.radians(degrees)], [*(red + 0.065 * direction), Z, np.radians(degrees)], *ROW[2:]])
    blocks[2:, 1] += 0.10
    bench.robot.pose(tool_down(np.array([[*red, 0.15]]), 0.08)[0], blocks)
    assert do(bench, "pick up the red block") is True


def test_the_law_of_a_grip_does_not_ask_how_the_block_is_turned():
    now = random_situations(500, seed=5)
    turned = now.blocks + np.random.default_rng(0).uniform(-1, 1, (500, 4, 1)) * (0, 0, 0, 1)
    np.testing.assert_array_equal(expert.targets(replace(now, blocks=turned)), expert.targets(now))


@pytest.mark.parametrize(("first", "then"), list(itertools.permutations(KINDS, 2)))
def test_an_instruction_that_changes_in_the_middle_is_followed_from_there(bench, first, then):
    rng = np.random.default_rng(KINDS.index(first) * len(KINDS) + KINDS.index(then))
    bench.robot.reset(int(rng.integers(2**31)))
    one = tasks.every([first])[0]  # red, stacked on green
    other = Task(then, "blue", "yellow" if then == "stack" else None)  # a block in the bin or in a stack stays there
    do(bench, tasks.wordings(one, "seen")[0], seconds=float(rng.uniform(0.5, 2.5)))
    assert do(bench, tasks.wordings(other, "seen")[0], seconds=30.0) is True


@pytest.mark.parametrize("then", ["pick up the blue block", "push the blue block to the left", "touch the blue block"])
def test_a_block_held_for_another_task_is_put_down_first(bench, then):
    bench.robot.reset(5)
    assert do(bench, "pick up the red block") is True and holds(bench) == "red"
    task = bench.say(then)
    heights = []
    for _ in range(100):
        state = bench.robot.read_state()
        if holds(bench) != "red":
            break
        now = Situation.of(state[None], bench.robot.block_poses[None], [task])
        bench.robot.apply(expert.next_target(now, 0.1)[0])
        heights.append(bench.robot.blocks["red"][2])
        bench.wait(0.1)
    assert heights[0] > 0.12 and heights[-1] < Z + 0.012  # lowered, not dropped from where it was
    before = bench.robot.blocks["red"]
    follow(bench, task, 6.0)
    assert np.abs(bench.robot.blocks["red"] - before).max() < 0.03
    if not then.startswith("touch"):
        assert bench.robot.judge() is True


def test_after_a_touch_the_expert_leaves_that_block_for_another(bench):
    bench.robot.reset(3)
    assert do(bench, "touch the red block") is True
    assert do(bench, "touch the blue block") is True
    assert bench.robot.touched == ("blue",)


def test_six_tasks_in_a_row_on_one_table(bench):
    bench.robot.pose(HOME, ROW)
    texts = [
        "touch the green block",
        "push the yellow block to the right",
        "pick up the red block",
        "stack the red block on the blue block",
        "put the green block in the bin",
    ]
    assert [do(bench, text) for text in texts] == [True] * 5


def test_no_step_is_faster_than_the_robot_allows():
    now = random_situations(2000)
    chunk = expert.targets(now, 8, 0.1)
    steps = np.diff(np.concatenate([now.q[:, None], chunk], axis=1), axis=1)
    assert chunk.shape == (2000, 8, 7)
    assert (np.abs(steps) <= kinematics.MAX_VELOCITY * 0.1 + 1e-9).all()


def test_targets_lie_within_the_limits_of_the_joints():
    chunk = expert.targets(random_situations(2000, seed=1), 8, 0.1)
    assert (chunk >= kinematics.LOW - 1e-9).all() and (chunk <= kinematics.HIGH + 1e-9).all()


def test_the_same_state_has_the_same_label_alone_or_among_others():
    now = random_situations(300, seed=2)
    together, again = expert.targets(now), expert.targets(now)
    assert np.array_equal(together, again)
    for i in range(0, 300, 7):
        np.testing.assert_allclose(expert.targets(now.only(np.array([i])))[0], together[i], atol=1e-12)


def test_the_first_row_of_a_chunk_is_the_next_target():
    now = random_situations(300, seed=3)
    assert np.array_equal(expert.targets(now, horizon=3)[:, 0], expert.next_target(now, 0.1))


def test_a_chunk_is_what_the_law_does_a_step_later_while_nothing_is_met():
    """Far from any block the law rolled forward is the law applied again."""
    now = random_situations(300, seed=4, tip_low=0.15)
    chunk = expert.targets(now, horizon=2)
    later = Situation(chunk[:, 0], now.blocks, now.kind, now.first, now.second)
    free = held(now.q, now.blocks) < 0
    np.testing.assert_allclose(chunk[free, 1], expert.next_target(later, 0.1)[free], atol=1e-12)


def test_a_gripped_block_moves_along_in_the_chunk():
    tip = np.array([[0.36, -0.18, Z + GRASP]])
    q = tool_down(tip, 0.045)
    now = Situation.of(q, ROW[None], [Task("pick", "red")])
    assert held(q, ROW[None]).tolist() == [0]
    rise = tip_position(expert.targets(now, 8)[0])[:, 2]
    assert (np.diff(rise) > -1e-9).all() and rise[-1] == pytest.approx(expert.LIFT_HEIGHT, abs=0.01)


@pytest.mark.parametrize("opening", [0.020, 0.060, 0.080])
def test_fingers_that_are_empty_or_open_hold_nothing(opening):
    q = tool_down(np.array([[0.36, -0.18, Z + GRASP]]), opening)
    assert held(q, ROW[None]).tolist() == [-1]


def test_a_low_tip_far_from_the_block_rises_before_it_moves_sideways():
    tip = np.array([[0.30, 0.0, 0.02]])
    now = Situation.of(tool_down(tip, 0.008), ROW[None], [Task("touch", "yellow")])
    aim = expert.goal(now).tip[0]
    np.testing.assert_allclose(aim, [0.30, 0.0, TRAVEL_HEIGHT], atol=1e-9)


def test_a_tip_over_the_block_is_sent_just_under_its_top_face():
    now = Situation.of(tool_down(np.array([[0.36, 0.18, 0.09]]), 0.008), ROW[None], [Task("touch", "yellow")])
    np.testing.assert_allclose(expert.goal(now).tip[0], [0.36, 0.18, 0.044], atol=1e-9)


def test_a_push_starts_behind_the_block_on_the_side_away_from_its_goal():
    for kind, side in (("push-left", 1), ("push-right", -1)):
        now = Situation.of(tool_down(np.array([[0.36, -0.06, 0.20]]), 0.028), ROW[None], [Task(kind, "green")])
        assert expert.goal(now).tip[0, 1] == pytest.approx(-0.06 - side * expert.BEHIND)


@pytest.mark.parametrize("height", [0.03, 0.06, 0.09, 0.15])
def test_the_law_of_a_touch_has_no_jumps_on_a_line_across_the_block(height):
    along = np.arange(-0.15, 0.15, 1e-3)
    tip = np.stack([0.36 + along, np.full_like(along, 0.18), np.full_like(along, height)], axis=1)
    blocks = np.broadcast_to(ROW, (len(tip), 4, 4))
    aim = expert.goal(Situation.of(tool_down(tip, 0.008), blocks, [Task("touch", "yellow")] * len(tip))).tip
    assert np.abs(np.diff(aim, axis=0)).max() < 1e-2


def test_open_fingers_around_a_block_never_stand_whatever_their_roll():
    """They close, turn or rise: a head that learns to stand does so for good."""
    rolls, heights = (
        axis.ravel() for axis in np.meshgrid(np.arange(-0.2, 2.15, 0.005), np.arange(0.012, 0.032, 0.001))
    )
    q = tool_down(np.stack([np.full(rolls.size, 0.36), np.full(rolls.size, -0.18), heights], axis=1), 0.08)
    q[:, 5] = rolls
    now = Situation.of(q, np.broadcast_to(ROW, (rolls.size, 4, 4)), [Task("pick", "red")] * rolls.size)
    goal = expert.goal(now)
    closes, turns = goal.opening < 0.07, np.abs(goal.roll - rolls) > 0.1
    assert np.all(closes | turns | (np.abs(goal.tip[:, 2] - tip_position(q)[:, 2]) > 0.003))


@pytest.mark.parametrize("kind", ["pick", "bin", "stack"])
def test_half_open_fingers_in_mid_air_rise_above_any_that_hold_a_block(kind):
    """Whether they have just gripped shows only in features of later: until then both go up, and up there it is
    known."""
    tip = np.random.default_rng(0).uniform((0.25, -0.25, 0.05), (0.50, 0.25, 0.19), (200, 3))
    for opening in (0.036, 0.042, 0.047, 0.055):
        q = tool_down(tip, opening)
        now = Situation.of(
            q, np.broadcast_to(ROW, (200, 4, 4)), [Task(kind, "red", "blue" if kind == "stack" else None)] * 200
        )
        empty = expert.goal(now)
        assert np.all(empty.tip[:, 2] > tip[:, 2] + 0.02) and np.all(empty.opening == OPEN)
        blocks = now.blocks.copy()
        blocks[:, 0, :3] = tip - (0.0, 0.0, GRASP)
        goes = (ROW[2] if kind == "stack" else np.array([*BIN_CENTRE, 0.0]))[:2]
        rises = (tip[:, 2] < 0.14) & (np.hypot(*(tip[:, :2] - goes).T) > 0.08)  # there it is lowered, later on
        assert rises.sum() > 50
        assert np.all(expert.goal(replace(now, blocks=blocks)).tip[rises, 2] > tip[rises, 2])
    assert max(expert.LIFT_HEIGHT, expert.CARRY_HEIGHT) + 0.02 < OPENING_HEIGHT


def test_fingers_close_all_through_a_span_whatever_opening_is_read_on_the_way():
    """Only where it ends they open and turn on: an opening that is read on the way past means nothing yet."""
    openings = np.arange(0.050, 0.0799, 0.0005)
    q = tool_down(np.tile((0.36, -0.18, Z + GRASP), (len(openings), 1)), openings)
    now = Situation.of(q, np.broadcast_to(ROW, (len(openings), 4, 4)), [Task("bin", "red")] * len(openings))
    squeezes = now.q[:, 6] > HELD_OPENING  # gripped from there on
    for roll in (0.0, 0.15, 0.80, 0.95):
        q[:, 5] = roll
        goal = expert.goal(replace(now, q=q))
        drift = goal.roll - roll
        assert np.all(goal.opening[squeezes] < HELD_OPENING)
        assert np.all(drift[openings > 0.065] > 0.05) and np.all(np.abs(drift[openings < 0.063]) < 1e-9)
    q[:, 5] = 0.45
    goal = expert.goal(replace(now, q=q))
    between = openings > 0.065
    assert np.all(goal.opening[between] == OPEN) and np.all(goal.roll[between] > 0.45 + 0.4)
