"""What instructions mean."""

from collections import Counter

import pytest

from sim import tasks
from sim.scene import COLOURS
from sim.tasks import Task


@pytest.mark.parametrize("split", ["seen", "unseen"])
@pytest.mark.parametrize("colour", COLOURS)
def test_every_wording_is_understood(colour, split):
    assert {tasks.parse(text) for text in tasks.wordings(colour, split)} == {Task("touch", colour)}


def test_unseen_wordings_are_kept_from_training():
    seen, unseen = tasks.wordings("red", "seen"), tasks.wordings("red", "unseen")
    assert len(set(seen)) >= 12 and len(set(unseen)) >= 6
    assert not set(seen) & set(unseen)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "touch the block",
        "touch the red block and the blue block",
        "touch the purple block",
        "the red block",
        "do not touch the red block",
        "don't touch the red block",
        "don\u2019t tap the red one",
        "put the red block in the bin",
        "pick up the red block with your fingers",
        "touch the colored block",
        "stop touching the red block",
        "touch anything but the red block",
        "reach away from the red block",
        "touch the block next to the red one",
        "touch the block that is touching the red one",
        "touch the one left of the red block",
        "never mind the red block, touch something",
        "wipe the red block with a finger",
        "\x00\xff touch",
    ],
)
def test_text_that_is_not_one_known_task_is_no_task(text):
    assert tasks.parse(text) is None


@pytest.mark.parametrize("text", ["Touch the RED block!", "  touch,the;red\nblock  ", "red: touch it, the red one"])
def test_case_and_punctuation_do_not_matter(text):
    assert tasks.parse(text) == Task("touch", "red")


def test_forty_episodes_are_ten_of_each_colour_and_repeatable():
    listed = tasks.episodes(3, 40, "unseen")
    assert Counter(task.colour for _, task, _ in listed) == dict.fromkeys(COLOURS, 10)
    assert all(tasks.parse(text) == task for _, task, text in listed)
    assert listed == tasks.episodes(3, 40, "unseen") != tasks.episodes(4, 40, "unseen")


def test_a_wrong_colour_or_split_names_the_right_ones():
    with pytest.raises(ValueError, match="one of red, green, blue, yellow, got 'pink'"):
        tasks.wordings("pink", "seen")
    with pytest.raises(ValueError, match="one of seen, unseen, got 'test'"):
        tasks.wordings("red", "test")


@pytest.mark.parametrize(
    "text",
    [
        "Robot, gently touch the red cube now.",
        "would you please tap the red one again?",
        "move your hand over and press red",
    ],
)
def test_other_plain_ways_of_asking_are_understood(text):
    assert tasks.parse(text) == Task("touch", "red")
