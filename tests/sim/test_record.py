"""Demonstrations of the scripted expert as recordings: what is in them, and how a folder of them survives."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from control.clock import FakeClock
from control.errors import ConfigError, RecordingError
from control.recording_reader import Recording, read_recording
from sim import demonstration_files, expert, tasks
from sim.demonstration_files import Demonstrator, Plan, file_of
from sim.demonstration_workers import WorkerFailed, record
from sim.following import Following
from sim.record_commands import app
from sim.scene import COLOURS
from sim.situation import Situation
from sim.tabletop import TabletopRobot

pytestmark = pytest.mark.usefixtures("can_render")
ROOT = Path(__file__).resolve().parents[2]
SMALL = ("--set", "robot.options.image_size=[24, 32]", "--set", "robot.options.cameras=[top, wrist]")
PLAN = Plan(4, ("touch", "push-left"), "seen", 3, 2, "webp", 95, 10, 50, 0.01, 0.0, 0.0, {"top": (24, 32)})


def launch(*words, limit_bytes: int | None = None) -> subprocess.Popen[str]:
    code = "import resource, sys, launch\nsys.argv[0] = 'launch.py'\n"
    if limit_bytes:
        code += f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit_bytes}, {limit_bytes}))\n"
    command = [sys.executable, "-c", code + "launch.main()", "record", *map(str, words)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def recorded(*words, **options) -> str:
    process = launch(*words, *SMALL, **options)
    said, _ = process.communicate(timeout=100)
    assert process.returncode == 0, said
    return said


def words_for(folder: Path, episodes: int = 4, **options: object) -> list[str]:
    chosen = {"episodes": episodes, "per_file": 2, "tasks": "touch", "workers": 2} | options
    return ["--out", str(folder), *(word for name, value in chosen.items() for word in (_flag(name), str(value)))]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def plain(recording: Recording) -> list[bytes]:
    """All of it in the order of time, to compare."""
    rows = [capture.images[camera].data for capture in recording.frames for camera in capture.images]
    rows += [np.append(row.values, row.stamp_ns).tobytes() for row in recording.states]
    rows += [np.append(row.targets, row.stamp_ns).tobytes() for row in [*recording.labels, *recording.actions]]
    return rows + [repr(row).encode() for row in [*recording.truths, *recording.episodes, *recording.instructions]]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> list[Recording]:
    folder = tmp_path_factory.mktemp("made")
    demonstrator = Demonstrator(PLAN, folder)
    assert [demonstrator.make(number, lambda index: None, lambda: False) for number in (0, 1)] == [[True] * 2] * 2
    demonstrator.close()
    return [read_recording(file_of(folder, number)) for number in (0, 1)]


def test_every_episode_of_the_plan_is_there_with_its_seed_words_and_verdict(made):
    drawn = PLAN.drawn()
    found = [episode for recording in made for episode in recording.episodes]
    assert [(episode.seed, episode.task) for episode in found] == [(seed, text) for seed, _, text in drawn]
    assert [(episode.index, episode.success) for episode in found] == [(i, True) for i in range(4)]
    said = [row.text for recording in made for row in recording.instructions]
    assert said == [text for _, _, text in drawn]


def test_stamps_lie_on_the_grids_that_were_asked_for(made):
    for recording in made:
        for episode in recording.episodes:
            for topic, hz in (("state", 50), ("frames", 10), ("label", 10), ("action", 10)):
                stamps = recording.log_ns[topic]
                inside = stamps[(stamps >= episode.begin_ns) & (stamps < episode.end_ns)]
                assert inside[0] == episode.begin_ns and set(np.diff(inside)) == {10**9 // hz}
        assert recording.lost == "" and len(recording.frames) > 10


def test_the_label_is_the_experts_chunk_from_the_true_state(made):
    recording = made[1]
    kinds = {episode.index: PLAN.drawn()[episode.index][1] for episode in recording.episodes}
    for label in recording.labels:
        state = recording.states[recording.newest("state", label.stamp_ns)]
        truth = recording.truths[recording.newest("truth", label.stamp_ns)]
        assert state.stamp_ns == truth.stamp_ns == label.stamp_ns and list(truth.objects) == list(COLOURS)
        task = kinds[state.task_instruction_id - 1]
        now = Situation.of(state.values[None], np.array(list(truth.objects.values()))[None], [task])
        np.testing.assert_array_equal(label.targets, expert.targets(now, 8, 0.1)[0])


def test_what_is_executed_carries_the_noise_that_was_asked_for(made):
    off = [
        row.targets[0] - label.targets[0]
        for recording in made
        for row, label in zip(recording.actions, recording.labels, strict=True)
    ]
    angles = np.array(off)[:, :6]
    assert 0.007 < angles.std() < 0.013
    assert np.abs(np.array(off)[:, 6]).max() < 1e-9


class Noted(TabletopRobot):
    """Keeps every command and its time."""

    def __init__(self, clock, **options):
        super().__init__(clock, **options)
        self.commands, self._time = [], clock

    def apply(self, targets):
        self.commands.append((self._time.now_ns(), np.array(targets)))
        return super().apply(targets)


@pytest.mark.parametrize("state_hz", [20, 50, 500])
def test_the_arm_is_commanded_as_the_live_host_commands_it(tmp_path, monkeypatch, state_hz):
    monkeypatch.setattr(demonstration_files, "TabletopRobot", Noted)
    plan = dataclasses.replace(PLAN, episodes=1, per_file=1, state_hz=state_hz, noise=0.05)
    demonstrator = Demonstrator(plan, tmp_path)
    demonstrator.make(0, lambda index: None, lambda: False)
    commands = demonstrator._robot.commands
    recording = read_recording(file_of(tmp_path, 0))
    assert set(np.diff([now_ns for now_ns, _ in commands])) == {10_000_000}
    assert 10 * (len(recording.actions) - 1) < len(commands) <= 10 * len(recording.actions)

    clock = FakeClock()
    again = Noted(clock, cameras={})
    again.reset(plan.drawn()[0][0])
    arm = Following(again, clock, 0.1)
    for action in recording.actions:
        np.testing.assert_allclose(arm.aim(action.targets[0], again.read_state()), action.targets[0], atol=1e-12)
        arm.advance(100_000_000)
    for (_, mine), (_, wanted) in zip(commands, again.commands, strict=False):
        np.testing.assert_allclose(mine, wanted, atol=1e-9)


def test_a_file_is_the_same_whatever_was_made_before_it(made, tmp_path):
    demonstrator = Demonstrator(PLAN, tmp_path)
    demonstrator.make(1, lambda index: None, lambda: False)
    assert plain(read_recording(file_of(tmp_path, 1))) == plain(made[1])


def test_detours_and_other_beginnings_leave_the_path_and_are_labelled_all_the_same(tmp_path):
    plan = dataclasses.replace(PLAN, detours=0.8, anywhere=1.0, noise=0.0, seed=5)
    Demonstrator(plan, tmp_path).make(0, lambda index: None, lambda: False)
    recording = read_recording(file_of(tmp_path, 0))
    off = [
        np.abs(row.targets[0] - label.targets[0])[:6].max()
        for row, label in zip(recording.actions, recording.labels, strict=True)
    ]
    assert np.max(off) > 0.03
    starts = [recording.states[recording.newest("state", row.begin_ns)].values for row in recording.episodes]
    assert np.abs(starts[0] - starts[1]).max() > 0.1


def test_wordings_are_of_the_split_that_was_asked_for():
    def texts(wordings: str) -> set[str]:
        return {text for _, _, text in dataclasses.replace(PLAN, episodes=200, wordings=wordings).drawn()}

    seen, unseen = set(tasks.all_wordings("seen")), set(tasks.all_wordings("unseen"))
    assert texts("seen") <= seen and texts("unseen") <= unseen
    assert texts("all") & seen and texts("all") & unseen


def test_a_second_call_makes_only_what_is_missing_or_was_cut(tmp_path):
    folder = tmp_path / "demos"
    first = recorded(*words_for(folder))
    assert "4 episodes in 2 files" in first and "touch 4/4" in first and "episodes/s, 2 workers" in first
    whole = [plain(read_recording(file_of(folder, number))) for number in (0, 1)]
    assert "all of it was there already" in recorded(*words_for(folder))

    file_of(folder, 1).unlink()
    cut = file_of(folder, 0).read_bytes()
    file_of(folder, 0).write_bytes(cut[: len(cut) // 2])
    (folder / "00001.mcap.123.partial").write_bytes(b"left over")
    kept = folder / "plan.json"
    assert "made 4 in" in recorded(*words_for(folder, workers=1))
    assert [plain(read_recording(file_of(folder, number))) for number in (0, 1)] == whole
    assert sorted(path.name for path in folder.iterdir()) == ["00000.mcap", "00001.mcap", kept.name]


def test_other_arguments_other_things_or_another_recorder_in_the_folder_are_refused(tmp_path):
    command = ["false"]

    def attempt(plan: Plan, folder: Path = tmp_path / "demos") -> None:
        record(plan, folder, 1, command, lambda *_: None, lambda: True)

    attempt(PLAN)
    with pytest.raises(ConfigError, match=r"--seed 3 there, 4 here; --noise 0.01 there, 0.0 here. Repeat those"):
        attempt(dataclasses.replace(PLAN, seed=4, noise=0.0))
    with pytest.raises(ConfigError, match=r"--tasks touch,push-left there, stack here"):
        attempt(dataclasses.replace(PLAN, kinds=("stack",)))
    with pytest.raises(ConfigError, match="cameras top 24x32 there, wrist 24x32 here"):
        attempt(dataclasses.replace(PLAN, cameras={"wrist": (24, 32)}))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("precious")
    with pytest.raises(ConfigError, match="holds no demonstrations, but cat.jpg"):
        attempt(PLAN, tmp_path / "photos")
    (tmp_path / "demos" / "plan.json").write_text('{"episodes": 4}')
    with pytest.raises(ConfigError, match="is no plan of demonstrations"):
        attempt(PLAN)


def test_two_recorders_in_one_folder_are_refused(tmp_path):
    def second(*_: object) -> bool:
        with pytest.raises(ConfigError, match="another `launch.py record` is at work"):
            record(PLAN, tmp_path, 1, ["false"], lambda *_: None, lambda: True)
        return True

    record(PLAN, tmp_path, 1, ["false"], lambda *_: None, second)


DYING = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from sim import demonstration_workers as workers
tell = workers._tell
def dying(what):
    tell(what)
    if {always} or not Path({marker!r}).exists():
        Path({marker!r}).write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
workers._tell = dying
workers.work(Path({folder!r}), lambda: False)
"""


def dying_worker(folder: Path, always: bool) -> list[str]:
    marker = str(folder.with_name("marker"))
    return [sys.executable, "-c", DYING.format(root=str(ROOT), always=always, marker=marker, folder=str(folder))]


def test_a_killed_worker_costs_only_the_file_that_it_was_writing(tmp_path, made):
    folder = tmp_path / "demos"
    shown: list[tuple[int, ...]] = []
    result = record(PLAN, folder, 1, dying_worker(folder, False), lambda *what: shown.append(what), lambda: False)
    assert (tmp_path / "marker").exists() and result.outcomes == dict.fromkeys(range(4), True)
    assert [plain(read_recording(file_of(folder, i))) for i in (0, 1)] == [plain(recording) for recording in made]
    assert shown[-1][0] == 4 and not result.was_stopped and result.new_episodes == 4


def test_a_file_that_kills_two_workers_ends_the_command(tmp_path):
    folder = tmp_path / "demos"
    with pytest.raises(WorkerFailed, match="two workers were killed by signal 9 while they made file 0"):
        record(PLAN, folder, 1, dying_worker(folder, True), lambda *_: None, lambda: False)


def test_a_worker_that_cannot_start_is_told_with_its_last_words(tmp_path):
    command = [sys.executable, "-c", "import sys; sys.exit('error: no OpenGL here')"]
    with pytest.raises(WorkerFailed, match="ended with code 1 while it made file 0: no OpenGL here"):
        record(PLAN, tmp_path, 1, command, lambda *_: None, lambda: False)


def wait_for(folder: Path, pattern: str, process: subprocess.Popen[str]) -> Path:
    deadline_s = time.monotonic() + 60
    while not (found := sorted(folder.glob(pattern))):
        assert time.monotonic() < deadline_s and process.poll() is None
        time.sleep(0.02)
    return found[0]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_order_and_the_same_command_goes_on(tmp_path, number):
    folder = tmp_path / "demos"
    process = launch(*words_for(folder, 12, workers=1), *SMALL)
    wait_for(folder, "00001.mcap.*.partial", process)
    worker = int(wait_for(folder, "*.partial", process).name.split(".")[2])
    os.kill(process.pid, number)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 1 and "are missing; the same command goes on" in said and "Traceback" not in said
    assert not is_alive(worker) and not list(folder.glob("*.partial"))
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.mcap")}
    assert before and "12 episodes in 6 files" in recorded(*words_for(folder, 12, workers=1))
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())


def test_no_worker_outlives_a_parent_that_was_killed(tmp_path):
    folder = tmp_path / "demos"
    process = launch(*words_for(folder, 12, workers=1), *SMALL)
    worker = int(wait_for(folder, "*.partial", process).name.split(".")[2])
    process.kill()
    process.communicate(timeout=30)
    deadline_s = time.monotonic() + 30
    while is_alive(worker):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_a_full_disk_is_said_and_what_is_whole_stays(tmp_path):
    folder = tmp_path / "demos"
    process = launch(*words_for(folder, workers=1), *SMALL, limit_bytes=40_000)
    said, _ = process.communicate(timeout=100)
    assert process.returncode == 1 and "is the disk full?" in said and "Traceback" not in said
    assert "the same command goes on from there" in " ".join(said.split())
    assert "4 episodes in 2 files" in recorded(*words_for(folder, workers=1))


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordingError, match="cannot be written to: Not a directory"):
        record(PLAN, tmp_path / "file" / "demos", 1, ["false"], lambda *_: None, lambda: False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "what to record? --episodes N of the scripted expert, or --live"),
        (("--episodes", "0"), "greater than or equal to 1"),
        (("--live", "--episodes", "3"), "exclude each other"),
        (("--episodes", "3", "--seconds", "2"), "--seconds needs --live"),
        (("--episodes", "3", "--tasks", "fold"), "unknown task 'fold'; known: touch, pick, bin"),
        (("--episodes", "3", "--state-hz", "25"), "expected a multiple of the 10 Hz of control"),
        (("--episodes", "3", "--camera-hz", "30"), "and of --camera-hz 30"),
        (("--episodes", "3", "--set", "robot.name=remote"), "which has a scripted expert, got 'remote'"),
        (("--episodes", "3", "--wordings", "new"), "'new' is not one of 'seen', 'unseen', 'all'"),
    ],
)
def test_wrong_usage_is_said_before_anything_is_made(words, message, tmp_path):
    result = CliRunner().invoke(app, ["--out", str(tmp_path / "demos"), *words], env={"COLUMNS": "300"})
    assert result.exit_code != 0 and message in f"{result.output}{result.exception}"
    assert not (tmp_path / "demos").exists()


def test_tasks_are_balanced_over_the_files():
    drawn = dataclasses.replace(PLAN, episodes=60, kinds=tasks.KINDS).drawn()
    assert Counter(task.kind for _, task, _ in drawn) == dict.fromkeys(tasks.KINDS, 10)
