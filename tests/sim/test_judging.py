"""Each task's success and its near misses, with blocks and contacts made by hand."""

import numpy as np
import pytest

from sim.judging import RELEASE_STEPS, TaskJudge
from sim.scene import BIN_CENTRE, BIN_SIZE, BLOCK_SIZE, COLOURS
from sim.tasks import Task

Z = BLOCK_SIZE / 2
START = {colour: np.array([0.36, y, Z]) for colour, y in zip(COLOURS, (-0.18, -0.06, 0.06, 0.18), strict=True)}
LOOK_S = 0.01


class Table:
    """Blocks that lie where they are put, and a judge that looks at them every 10 ms."""

    def __init__(self, kind: str, colour: str = "red", on: str | None = None) -> None:
        self.blocks = {name: centre.copy() for name, centre in START.items()}
        self.judge = TaskJudge(Task(kind, colour, on), (), self.blocks)

    def put(self, x: float, y: float, z: float = Z, colour: str = "red") -> None:
        self.blocks[colour] = np.array([x, y, z])

    def wait(self, seconds: float, touching: tuple[str, ...] = ()) -> bool | None:
        for _ in range(round(seconds / LOOK_S)):
            self.judge.watch(touching)
            self.judge.look(self.blocks, touching, LOOK_S)
        return self.judge.verdict


def test_without_a_task_there_is_no_verdict():
    judge = TaskJudge()
    judge.watch(("red",))
    judge.look(START, ("red",), 1.0)
    assert judge.verdict is None and judge.touched == ["red"] and not judge.is_over


def test_the_first_touch_decides():
    right, wrong = Table("touch"), Table("touch")
    assert right.wait(0.1) is False and not right.judge.is_over
    assert right.wait(0.1, ("red",)) is True and right.judge.is_over
    assert wrong.wait(0.1, ("blue",)) is False and wrong.judge.is_over
    assert right.wait(0.1, ("blue",)) is True
    assert wrong.wait(0.1, ("red",)) is False and wrong.judge.touched == ["blue", "red"]


def test_two_blocks_touched_in_the_same_step_are_no_success():
    assert Table("touch").wait(0.1, ("red", "green")) is False


def test_what_the_hand_touches_from_before_counts_only_after_it_was_let_go():
    judge = TaskJudge(Task("touch", "red"), ("blue",), START)
    for _ in range(5):
        judge.watch(("blue",))
    for _ in range(RELEASE_STEPS - 1):
        judge.watch(())
    judge.watch(("blue",))  # contacts chatter: it was not let go
    assert judge.touched == []
    for _ in range(RELEASE_STEPS):
        judge.watch(())
    judge.watch(("blue",))
    assert judge.touched == ["blue"] and judge.verdict is False


def test_the_named_block_under_the_finger_is_touched_from_the_start():
    assert TaskJudge(Task("touch", "red"), ("red",), START).verdict is True


def test_a_block_that_is_lifted_and_kept_for_a_second_is_picked_up():
    table = Table("pick")
    table.put(0.36, -0.18, Z + 0.12)
    assert table.wait(0.9, ("red",)) is False
    assert table.wait(0.2, ("red",)) is True


def test_a_block_that_is_dropped_before_the_second_is_over_is_not():
    table = Table("pick")
    for _ in range(3):
        table.put(0.36, -0.18, Z + 0.12)
        assert table.wait(0.9, ("red",)) is False
        table.put(0.36, -0.18)
        assert table.wait(0.1) is False


@pytest.mark.parametrize(("height", "touching"), [(0.095, ("red",)), (0.12, ()), (0.12, ("green",))])
def test_a_block_too_low_in_the_air_by_itself_or_beside_another_in_the_hand_is_not(height, touching):
    table = Table("pick")
    table.put(0.36, -0.18, Z + height)
    assert table.wait(2.0, touching) is False


def test_another_block_lifted_is_not_the_named_one():
    table = Table("pick")
    table.put(0.36, 0.06, Z + 0.12, colour="blue")
    assert table.wait(2.0, ("blue",)) is False


def test_a_block_that_lies_in_the_bin_and_was_let_go_is_in_it():
    table = Table("bin")
    table.put(*BIN_CENTRE, Z + 0.004)
    assert table.wait(0.2) is False
    assert table.wait(0.2) is True


@pytest.mark.parametrize(
    ("x", "z", "touching"),
    [
        (0.0, Z + 0.004, ("red",)),  # still in the hand
        (BIN_SIZE / 2 + 0.001, 0.045 + Z - 0.005, ()),  # leaning on the rim, its centre outside
        (0.0, 0.045 + Z + 0.001, ()),  # across the rim, or on another block in there
    ],
)
def test_a_block_in_the_hand_on_the_rim_or_above_it_is_not_in_the_bin(x, z, touching):
    table = Table("bin")
    table.put(BIN_CENTRE[0] + x, BIN_CENTRE[1], z)
    assert table.wait(1.0, touching) is False


@pytest.mark.parametrize(("kind", "side"), [("push-left", 1), ("push-right", -1)])
def test_a_block_is_pushed_once_it_is_eight_centimetres_to_that_side(kind, side):
    table = Table(kind, "blue")
    x, y, _ = START["blue"]
    table.put(x, y + side * 0.079, colour="blue")
    assert table.wait(0.1, ("blue",)) is False
    table.put(x, y - side * 0.10, colour="blue")
    assert table.wait(0.1, ("blue",)) is False  # the wrong side
    table.put(x + 0.09, y + side * 0.085, colour="blue")
    assert table.wait(0.1, ("blue",)) is False  # forward rather than sideways
    table.put(x + 0.02, y + side * 0.081, colour="blue")
    assert table.wait(0.1, ("blue",)) is True


def test_a_block_that_was_lifted_on_the_way_was_carried_and_not_pushed():
    table = Table("push-left")
    x, y, _ = START["red"]
    table.put(x, y + 0.04, Z + 0.02)
    table.wait(0.05, ("red",))
    table.put(x, y + 0.10)
    assert table.wait(1.0) is False


def stacked(offset: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Table:
    table = Table("stack", "red", "blue")
    table.blocks["red"] = START["blue"] + (0, 0, BLOCK_SIZE) + np.array(offset)
    return table


def test_a_block_at_rest_on_the_other_is_stacked_after_half_a_second():
    table = stacked((0.01, -0.01, 0.001))
    assert table.wait(0.45) is False
    assert table.wait(0.1) is True


@pytest.mark.parametrize("offset", [(0.025, 0, 0), (0, 0, 0.02), (0, 0, -BLOCK_SIZE)])
def test_a_block_beside_above_or_in_the_place_of_the_other_is_not_stacked(offset):
    assert stacked(offset).wait(2.0) is False


def test_a_stack_that_the_hand_still_grips_is_not_finished():
    table = stacked()
    assert table.wait(2.0, ("red",)) is False
    assert table.wait(0.6, ("blue",)) is True  # a finger against the lower one does not hold the upper


def test_a_stack_that_falls_before_half_a_second_is_none():
    table = stacked()
    assert table.wait(0.4) is False
    table.put(0.36, 0.12)
    assert table.wait(2.0) is False


def test_on_the_wrong_block_is_not_stacked():
    table = Table("stack", "red", "green")
    table.blocks["red"] = START["blue"] + (0, 0, BLOCK_SIZE)
    assert table.wait(2.0) is False


def test_success_stays_whatever_comes_after():
    table = stacked()
    table.wait(0.6)
    table.put(0.36, 0.12)
    assert table.wait(1.0, ("red", "blue")) is True and table.judge.is_over
