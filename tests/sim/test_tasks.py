"""What instructions mean, and how lists of episodes are drawn."""

import re
from collections import Counter

import numpy as np
import pytest

from control.errors import ConfigError
from sim import tasks
from sim.scene import COLOURS
from sim.tasks import KINDS, Task


@pytest.mark.parametrize("split", ["seen", "unseen"])
@pytest.mark.parametrize("task", tasks.every(), ids=lambda task: f"{task.kind}-{task.colour}-{task.on}")
def test_every_wording_is_understood_as_its_task_and_no_other(task, split):
    assert {tasks.parse(text) for text in tasks.wordings(task, split)} == {task}


@pytest.mark.parametrize("kind", KINDS)
def test_as_many_wordings_are_kept_from_training_as_train(kind):
    task = tasks.every([kind])[0]
    seen, unseen = tasks.wordings(task, "seen"), tasks.wordings(task, "unseen")
    assert len(set(seen)) >= 5 and len(set(unseen)) >= 5
    assert not set(seen) & set(unseen)


def test_the_unseen_wordings_are_about_half_of_all():
    counts = {split: len(set(tasks.all_wordings(split))) for split in ("seen", "unseen")}
    assert 0.4 < counts["unseen"] / sum(counts.values()) < 0.6


def test_unseen_wordings_have_no_word_that_training_never_met():
    known, unseen = (
        {word for text in tasks.all_wordings(split) for word in re.findall(r"\w+", text)}
        for split in ("seen", "unseen")
    )
    assert unseen - known == set()


def test_there_are_six_kinds_over_four_colours():
    assert KINDS == ("touch", "pick", "bin", "push-left", "push-right", "stack")
    assert Counter(task.kind for task in tasks.every()) == dict.fromkeys(KINDS, 4) | {"stack": 12}
    assert all(task.colour != task.on for task in tasks.every())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\x00\xff touch",
        "touch the block",
        "touch the purple block",
        "the red block",
        "touch the red block and the blue block",
        "do not touch the red block",
        "don't touch the red block",
        "don\u2019t tap the red one",
        "touch the colored block",
        "stop touching the red block",
        "touch anything but the red block",
        "reach away from the red block",
        "touch the block next to the red one",
        "touch the block that is touching the red one",
        "touch the one left of the red block",
        "never mind the red block, touch something",
        "wipe the red block with a finger",
        "pick up everything",
        "never pick up the red block",
        "put the red block next to the bin",
        "put the red and the blue block in the bin",
        "push the red block",
        "push the red block forward",
        "push the red block left and right",
        "push the red block left into the bin",
        "take the red block out of the bin",
        "stack the red block",
        "stack the red block on the red block",
        "stack the red block on the blue block on the green block",
        "on the red block put the blue block",
        "put the red block under the blue block",
        "do not stack the red block on the blue one",
    ],
)
def test_text_that_is_not_one_known_task_is_no_task(text):
    assert tasks.parse(text) is None


@pytest.mark.parametrize(
    ("text", "task"),
    [
        ("Touch the RED block!", Task("touch", "red")),
        ("  touch,the;red\nblock  ", Task("touch", "red")),
        ("Robot, gently touch the red cube now.", Task("touch", "red")),
        ("would you please tap the red one again?", Task("touch", "red")),
        ("Lift the yellow cube up, please", Task("pick", "yellow")),
        ("Could you drop the green one into the box?", Task("bin", "green")),
        ("gently nudge the blue cube toward the left side", Task("push-left", "blue")),
        ("slide the blue cube to your right", Task("push-right", "blue")),
        ("Now put the red cube on top of the yellow one.", Task("stack", "red", "yellow")),
    ],
)
def test_other_plain_ways_of_asking_are_understood(text, task):
    assert tasks.parse(text) == task


def test_sixty_episodes_are_ten_of_each_kind_with_all_colours_and_repeatable():
    listed = tasks.episodes(3, 60, "unseen")
    assert Counter(task.kind for _, task, _ in listed) == dict.fromkeys(KINDS, 10)
    for kind in KINDS[:-1]:
        counts = Counter(task.colour for _, task, _ in listed if task.kind == kind)
        assert set(counts) == set(COLOURS) and max(counts.values()) - min(counts.values()) <= 1
    assert all(tasks.parse(text) == task for _, task, text in listed)
    assert {text for _, _, text in listed} <= set(tasks.all_wordings("unseen"))
    assert listed == tasks.episodes(3, 60, "unseen") != tasks.episodes(4, 60, "unseen")


def test_episodes_of_chosen_kinds_are_of_those_only():
    listed = tasks.episodes(0, 24, kinds=("stack",))
    assert Counter((task.colour, task.on) for _, task, _ in listed) == {
        (task.colour, task.on): 2 for task in tasks.every(["stack"])
    }


def test_sampled_tasks_take_every_kind_as_often():
    rng = np.random.default_rng(0)
    counts = Counter(tasks.sample_task(rng).kind for _ in range(600))
    assert set(counts) == set(KINDS) and min(counts.values()) > 70


def test_kinds_are_named_with_commas_and_shorthands():
    assert tasks.named("all") == KINDS
    assert tasks.named("push, touch,touch") == ("push-left", "push-right", "touch")
    with pytest.raises(ConfigError, match=r"unknown task 'lift'; known: touch, .*, stack, push for both sides, all"):
        tasks.named("touch,lift")


def test_a_wrong_colour_kind_or_split_names_the_right_ones():
    with pytest.raises(ValueError, match="one of red, green, blue, yellow, got 'pink'"):
        tasks.wordings(Task("touch", "pink"), "seen")
    with pytest.raises(ValueError, match="one of touch, pick, bin, push-left, push-right, stack, got 'fold'"):
        tasks.wordings(Task("fold", "red"), "seen")
    with pytest.raises(ValueError, match="one of seen, unseen, got 'test'"):
        tasks.wordings(Task("touch", "red"), "test")  # type: ignore[arg-type]
