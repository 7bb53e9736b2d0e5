"""Lists of trials: seeded, balanced, and from a user's own sentences."""

from collections import Counter

import pytest

from control.clock import FakeClock
from control.errors import ConfigError
from sim import episodes, tasks
from sim.scene import COLOURS
from sim.tabletop import TabletopRobot
from sim.tasks import Task


@pytest.fixture
def written(tmp_path):
    def write(text):
        file = tmp_path / "mine.txt"
        file.write_text(text)
        return file

    return write


def test_episodes_are_as_many_a_task_as_asked_for_and_repeatable():
    listed = episodes.drawn(3, 8, "touch,push,stack", "unseen")
    assert Counter(episode.task for episode in listed) == {"touch": 8, "push-left": 8, "push-right": 8, "stack": 8}
    assert (
        listed
        == episodes.drawn(3, 8, "touch,push,stack", "unseen")
        != episodes.drawn(4, 8, "touch,push,stack", "unseen")
    )
    assert Counter(tasks.parse(episode.text).colour for episode in listed[:8]) == dict.fromkeys(COLOURS, 2)


def test_those_of_a_task_do_not_depend_on_what_else_is_asked_for():
    alone = episodes.drawn(3, 4, "pick", "seen")
    assert [episode for episode in episodes.drawn(3, 4, "all", "seen") if episode.task == "pick"] == alone
    assert not {episode.seed for episode in alone} & {episode.seed for episode in episodes.drawn(3, 4, "bin", "seen")}


def test_an_episode_means_what_its_sentence_says():
    for episode in episodes.drawn(1, 12, "all", "unseen"):
        task = tasks.parse(episode.meaning)
        assert task == tasks.parse(episode.text) and task.kind == episode.task
        assert episode.text in tasks.wordings(task, "unseen") and episode.text not in tasks.wordings(task, "seen")


def test_own_sentences_are_read_with_their_tasks(written):
    file = written(
        "# mine\n\n  pick red : hoist the   crimson brick  # odd words\n"
        "push-left blue: shove blue over\nstack red on blue: a tower: red over blue\n"
    )
    assert episodes.read_wordings(file) == [
        (Task("pick", "red"), "hoist the crimson brick"),
        (Task("push-left", "blue"), "shove blue over"),
        (Task("stack", "red", "blue"), "a tower: red over blue"),
    ]


def test_own_sentences_are_used_in_turn_and_judged_by_their_task(written):
    file = written("pick red: hoist it\npick blue: up with the blue one\ntouch green: feel green\n")
    listed = TabletopRobot(FakeClock()).wordings_of(file, 1, 4, None)
    assert [(episode.task, episode.text, episode.meaning) for episode in listed] == [
        *[("touch", "feel green", "touch the green block")] * 4,
        *[("pick", "hoist it", "pick up the red block"), ("pick", "up with the blue one", "pick up the blue block")]
        * 2,
    ]
    assert len({episode.seed for episode in listed}) == 8
    assert {episode.task for episode in episodes.given(file, 1, 2, "pick")} == {"pick"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pick red\n", r"mine.txt:1: expected `task: sentence`, got 'pick red'"),
        ("pick red: \n", r"mine.txt:1: expected `task: sentence`, got 'pick red:'"),
        (
            "# x\npick pink: lift it\n",
            r"mine.txt:2: 'pick pink' is no task: expected touch red, pick red, .*red, green",
        ),
        ("lift red: lift it\n", r"mine.txt:1: 'lift red' is no task"),
        ("stack red on red: pile\n", r"mine.txt:1: 'stack red on red' is no task"),
        ("stack red blue: pile\n", r"mine.txt:1: 'stack red blue' is no task"),
        ("pick on red: lift\n", r"mine.txt:1: 'pick on red' is no task"),
        ("pick red blue: lift\n", r"mine.txt:1: 'pick red blue' is no task"),
        (": lift\n", r"mine.txt:1: '' is no task"),
        ("# nothing\n\n", r"has no line `task: sentence`"),
    ],
)
def test_a_line_that_is_no_sentence_for_a_task_is_named(written, text, message):
    with pytest.raises(ConfigError, match=message):
        episodes.read_wordings(written(text))


def test_files_and_tasks_that_are_not_there_are_named(written, tmp_path):
    with pytest.raises(ConfigError, match="none.txt cannot be read"):
        episodes.read_wordings(tmp_path / "none.txt")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="binary cannot be read"):
        episodes.read_wordings(tmp_path / "binary")
    with pytest.raises(ConfigError, match="has no sentence for bin; it has pick"):
        episodes.given(written("pick red: lift it\n"), 1, 2, "pick,bin")


def test_the_other_task_of_a_swap_is_of_another_block_in_the_same_scene():
    kinds = set()
    for episode in episodes.drawn(2, 20, "touch,pick,stack", "unseen"):
        other = episodes.another(episode, "touch,pick,stack", "unseen")
        kinds.add(other.task)
        assert other.seed == episode.seed and other == episodes.another(episode, "touch,pick,stack", "unseen")
        assert tasks.parse(other.meaning).colour != tasks.parse(episode.meaning).colour
    assert kinds == {"touch", "pick", "stack"}


def test_blocks_that_are_replaced_with_every_instruction_cannot_be_evaluated():
    robot = TabletopRobot(FakeClock(), reset_on_instruction=True)
    with pytest.raises(ConfigError, match="leave out robot.options.reset_on_instruction"):
        robot.episodes(1, 1, "all", "seen")
