"""The expert closed-loop at 10 Hz on the real physics, and the shape of its law."""

import numpy as np
import pytest

from sim import expert, kinematics, tasks
from sim.placement import place_blocks
from sim.tabletop import HOME


def touch(bench, text: str, max_ticks: int = 80) -> bool | None:
    """Follow the expert until any block is touched."""
    task = bench.say(text)
    for _ in range(max_ticks):
        state = bench.robot.read_state()
        if bench.robot.touched:
            break
        block = bench.robot.blocks[task.colour]
        bench.robot.apply(expert.next_target(state[None], block[None], 0.1)[0])
        bench.clock.advance(100_000_000)
    return bench.robot.judge()


@pytest.mark.parametrize("split", ["seen", "unseen"])
def test_from_home_the_expert_touches_only_the_named_block(bench, split):
    touched = 0
    for seed, _, text in tasks.episodes(7, 40, split):
        bench.robot.reset(seed)
        touched += touch(bench, text) is True
    assert touched >= 38


def test_from_any_pose_the_expert_touches_only_the_named_block(bench):
    rng = np.random.default_rng(5)
    touched = tried = 0
    while tried < 40:
        q = rng.uniform(kinematics.LOW, kinematics.HIGH)
        bench.robot.pose(q, place_blocks(rng, 1)[0])
        if bench.robot.tip[2] < 0.01 or bench.robot.deepest_arm_contact() > 0:
            continue
        tried += 1
        touched += touch(bench, tasks.sample_instruction(rng)[1]) is True
    assert touched >= 38


def test_the_expert_leaves_a_block_it_already_touches_for_another(bench):
    bench.robot.reset(3)
    assert touch(bench, "touch the red block") is True
    assert touch(bench, "touch the blue block") is True
    assert bench.robot.touched == ("blue",)


def test_a_low_tip_far_from_the_block_rises_before_it_moves_sideways():
    tip, block = np.array([[0.30, 0.20, 0.02]]), np.array([[0.45, -0.15, 0.024]])
    np.testing.assert_allclose(expert.desired_tip(tip, block), [[0.30, 0.20, expert.TRAVEL_HEIGHT]])


def test_a_tip_over_the_block_is_sent_just_under_its_top_face():
    block = np.array([[0.40, 0.10, 0.024]])
    np.testing.assert_allclose(expert.desired_tip(block + (0, 0, 0.06), block), [[0.40, 0.10, 0.044]])


@pytest.mark.parametrize("height", [0.03, 0.06, 0.09, 0.15])
def test_the_law_has_no_jumps_on_a_line_across_the_block(height):
    along = np.arange(-0.15, 0.15, 1e-4)
    tip = np.stack([0.40 + along, np.full_like(along, 0.10), np.full_like(along, height)], axis=1)
    block = np.broadcast_to((0.40, 0.10, 0.024), tip.shape)
    assert np.abs(np.diff(expert.desired_tip(tip, block), axis=0)).max() < 1e-3


def test_no_step_is_faster_than_the_robot_allows():
    rng = np.random.default_rng(3)
    q = rng.uniform(kinematics.LOW, kinematics.HIGH, (300, 7))
    chunk = expert.targets(q, place_blocks(rng, 300)[:, 0, :3], horizon=8, period_s=0.1)
    steps = np.diff(np.concatenate([q[:, None], chunk], axis=1), axis=1)
    assert chunk.shape == (300, 8, 7)
    assert (np.abs(steps) <= kinematics.MAX_VELOCITY * 0.1 + 1e-9).all()


def test_the_first_row_of_a_chunk_is_the_next_target():
    block = np.array([[0.40, 0.10, 0.024]])
    np.testing.assert_array_equal(
        expert.targets(HOME[None], block, horizon=3)[:, 0], expert.next_target(HOME[None], block, 0.1)
    )
