"""Replaying what the real control loop did on a fake clock, with an encoder and a head that can be computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from recordings import frames
from rig import PERIOD_NS, LoopRig, two_joint_spec

from control.clock import NS_PER_MS, FakeClock, Tick
from control.errors import ConfigError
from control.messages import ActionChunk, Features, Frames, Instruction, Mode, State
from control.recording import RecordingWriter
from control.recording_images import ImageCodec
from control.recording_reader import read_recording
from control.replay import Actor, in_lockstep, in_wall_clock_time
from control.replay_report import lines, report
from control.replay_ticks import recorded_ticks

TICKS = 12
WATCHDOG_NS = 300 * NS_PER_MS  # of the rig


class Eye:
    """Features by hand: the mean of the image, and the length of the instruction."""

    policy_id = "policy"
    cameras = {"front": (28, 28)}

    def __init__(self, scale: float = 1.0, clock: FakeClock | None = None, encode_ms: float = 0.0) -> None:
        self.scale, self.clock, self.encode_ms = scale, clock, encode_ms
        self.seen: list[int] = []
        self.refused: set[int] = set()

    def encode(self, frames: Frames, instruction: Instruction) -> Features:
        self.seen.append(frames.seq)
        if frames.seq in self.refused:
            raise ConfigError(f"frame {frames.seq} is upside down")
        if self.clock is not None:
            self.clock.advance(round(self.encode_ms * NS_PER_MS))
        mean = self.scale * frames.images["front"].mean() / 255
        tokens = np.array([[mean, len(instruction.text) / 100]], dtype=np.float32)
        return Features(
            frames.seq,
            frames.stamp_ns,
            frames.seq,
            frames.stamp_ns,
            instruction.session,
            instruction.id,
            1,
            "policy",
            tokens,
            {"front": 0.0},
            self.encode_ms,
        )


class Hand:
    """Targets that depend on features, state and age, fast enough to meet the velocity limit now and then."""

    policy_id = "policy"
    state_names = action_names = ("a", "b")
    horizon, period_s, window_samples = 2, 0.1, 0

    def act(self, tokens, state, feature_age_ms, window=None):
        first = state * 0.5 + tokens[0] * 3 - feature_age_ms / 2000
        return np.stack([first, first + 0.05])


@pytest.fixture
def rig():
    return LoopRig(head=Hand(), max_following_s=60)  # its measurements are made up and follow no command


def record(file, rig, ticks=TICKS, texts=("touch red", "touch the blue one"), leave_out=(), missed=None):
    """The loop really runs: each tick on the capture of the tick before, and a new instruction in the middle."""
    eye = Eye()
    with RecordingWriter(file, rig.spec, images=ImageCodec("webp")) as writer:
        rig.feed_robot()
        rig.clock.advance(PERIOD_NS)
        capture = frames(rig.spec, 1, rig.clock.now_ns())
        for index in range(ticks):
            writer.write(capture)
            if index in (0, ticks // 2):
                said = rig.loop.say(texts[index > 0])
                writer.write(said)
            late = (missed or {}).get(index, 0)
            rig.clock.advance(PERIOD_NS - 40 * NS_PER_MS + late * PERIOD_NS)
            values = np.array([0.02 * index, -0.01 * index])
            state = State(index + 1, rig.clock.now_ns() + 15 * NS_PER_MS, values)
            rig.state.send(state)
            writer.write(state)
            features = eye.encode(capture, said)
            rig.features.send(features)
            if "features" not in leave_out:
                writer.write(features, received_ns=rig.clock.now_ns())
            rig.clock.advance(20 * NS_PER_MS)
            cycle = rig.loop.tick(tick_at(rig.clock.now_ns(), late))
            rig.clock.advance(20 * NS_PER_MS)
            for action in rig.action.items:
                writer.write(action)
            rig.action.items.clear()
            if "cycles" not in leave_out:
                writer.write(cycle)
            capture = frames(rig.spec, index + 2, rig.clock.now_ns())
    return file


def tick_at(now_ns, missed=0):
    return Tick(now_ns, 0, missed)


def replayed(file, rig, eye=None, head=None, settings=None, clock=None):
    recording = read_recording(file)
    ticks, left_out = recorded_ticks(recording, WATCHDOG_NS)
    act = Actor(recording, head or Hand(), settings or rig.loop._settings)
    eye = eye or Eye()
    if clock is None:
        done = in_lockstep(recording, ticks, eye, act, lambda: False, lambda done: None)
    else:
        done = in_wall_clock_time(recording, ticks, eye, act, clock, lambda: False, lambda done: None)
    return done, report(recording, done, left_out, "policy")


def test_the_same_encoder_and_head_give_the_recorded_actions_to_the_last_bit(rig, tmp_path):
    done, found = replayed(record(tmp_path / "a.mcap", rig), rig)
    assert len(done) == TICKS and found["ticks"]["compared"] == TICKS and not found["ticks"]["left_out"]
    for tick in done:
        np.testing.assert_array_equal(tick.targets, tick.recorded.action.targets)
    assert found["limits_hit"]  # the gate has had its say, too
    assert found["features"]["cosine"]["min"] == pytest.approx(1.0) and found["features"]["largest"]["max"] == 0.0
    assert all(row["max"] == 0.0 == row["rms"] for row in found["actions"].values())
    assert found["feature_age_ms"]["replayed"] == found["feature_age_ms"]["recorded"]
    assert {row["instruction_id"] for row in found["per_tick"]} == {1, 2}


@pytest.mark.parametrize("missed", [1, 2, 3])  # 300 ms, the watchdog, are two ticks and the one that comes
def test_after_missed_ticks_a_replay_begins_where_the_loop_began(rig, tmp_path, missed):
    done, found = replayed(record(tmp_path / "a.mcap", rig, missed={6: missed}), rig)
    assert found["ticks"]["compared"] == TICKS and not found["ticks"]["left_out"]
    for tick in done:
        np.testing.assert_array_equal(tick.targets, tick.recorded.action.targets)


def test_another_encoder_is_told_by_features_and_by_each_joint_with_its_worst_tick(rig, tmp_path):
    file = record(tmp_path / "a.mcap", rig)
    done, found = replayed(file, rig, Eye(scale=0.9))
    recorded = read_recording(file)
    largest = [abs(0.1 * features.tokens[0, 0]) for features in recorded.features]
    assert found["features"]["largest"]["max"] == pytest.approx(max(largest), rel=1e-4)
    assert 0.9 < found["features"]["cosine"]["min"] < 1.0
    actions = found["actions"]
    by_hand = np.stack([tick.targets - tick.recorded.action.targets for tick in done])
    assert actions["a"]["rms"] == pytest.approx(np.sqrt(np.mean(by_hand[:, :, 0] ** 2)))
    assert actions["a"]["max"] == pytest.approx(np.abs(by_hand[:, :, 0]).max()) and actions["a"]["max"] > 0.001
    assert actions["b"]["max"] == 0.0  # looks at the instruction alone
    worst = next(row for row in found["per_tick"] if row["seq"] == actions["a"]["max_seq"])
    assert worst["actions"]["a"]["max"] == actions["a"]["max"]
    assert any("cosine at least 0.9" in line for line in lines(found))


def test_one_tick_that_differs_does_not_drag_the_next_ones_along(rig, tmp_path):
    class Once(Hand):
        def act(self, tokens, state, feature_age_ms, window=None):
            return super().act(tokens, state, feature_age_ms) + (0.01 if state[0] == 0.02 * 4 else 0.0)

    done, _ = replayed(record(tmp_path / "a.mcap", rig), rig, head=Once())
    off = [bool((tick.targets != tick.recorded.action.targets).any()) for tick in done]
    assert off == [index == 4 for index in range(TICKS)]


def test_what_an_encoder_or_a_head_cannot_do_is_counted_by_its_reason(rig, tmp_path):
    class Broken(Hand):
        def act(self, tokens, state, feature_age_ms, window=None):
            if state[0] == 0.02 * 5:
                raise RuntimeError("out of cheese")
            return super().act(tokens, state, feature_age_ms) * (np.nan if state[0] == 0.02 * 6 else 1.0)

    eye = Eye()
    eye.refused = {3}
    _, found = replayed(record(tmp_path / "a.mcap", rig), rig, eye, Broken())
    assert found["ticks"]["compared"] == TICKS - 3
    assert found["ticks"]["faults"] == {
        "not encoded: frame # is upside down": 1,
        "the head failed: RuntimeError: out of cheese": 1,
        "the head gave nan for action # of row #": 1,
    }
    assert "1 ticks without an action this time: the head failed: RuntimeError: out of cheese" in lines(found)


def test_ticks_whose_inputs_are_not_in_the_recording_are_left_out_by_reason(rig, tmp_path):
    """A gap in captures, features and states, as a slow disk or a late start leaves it."""
    whole = read_recording(record(tmp_path / "a.mcap", rig))
    gone = {"frames": 3, "state": 5, "features": 7}
    with RecordingWriter(tmp_path / "b.mcap", rig.spec, images=ImageCodec("webp")) as writer:
        for name, nouns in (("frames", whole.frames), ("state", whole.states), ("features", whole.features)):
            for index, noun in enumerate(nouns):
                if index != gone[name]:
                    writer.write(noun.decode() if name == "frames" else noun)
        for noun in (*whole.instructions, *whole.actions[1:], *whole.cycles[1:]):
            writer.write(noun)
    _, found = replayed(tmp_path / "b.mcap", rig)
    assert found["ticks"]["left_out"] == {
        "the action before it was not recorded": 1,
        "its capture was not recorded": 1,
        "its state was not recorded": 1,
        "its features were not recorded": 1,
    }
    assert found["ticks"]["compared"] == TICKS - 5  # the very first one is not in the file at all
    assert all(row["max"] == 0.0 for row in found["actions"].values())


def test_a_hold_is_left_out_and_the_tick_after_it_goes_on_from_what_was_held(rig, tmp_path):
    file = tmp_path / "a.mcap"
    eye = Eye()
    with RecordingWriter(file, rig.spec, images=ImageCodec("webp")) as writer:
        rig.feed_robot()
        said = rig.loop.say("touch it")
        writer.write(said)
        for index in range(6):
            rig.clock.advance(PERIOD_NS)
            capture = frames(rig.spec, index, rig.clock.now_ns() - 50 * NS_PER_MS)
            writer.write(capture)
            features = eye.encode(capture, said)
            if index == 3:
                rig.clock.advance(700 * NS_PER_MS)  # features older than hold_after_ms
            state = State(index, rig.clock.now_ns(), np.array([0.5, 0.5]))
            writer.write(state)
            rig.state.send(state)
            writer.write(features)
            if index < 3 or index > 3:
                rig.features.send(features)
            cycle = rig.loop.tick(tick_at(rig.clock.now_ns()))
            writer.write(rig.action.poll())
            writer.write(cycle)
    done, found = replayed(file, rig)
    assert found["ticks"]["left_out"] == {"mode HOLD": 1} and len(done) == 5
    for tick in done:
        np.testing.assert_array_equal(tick.targets, tick.recorded.action.targets)


def test_demonstrations_without_cycles_are_replayed_on_what_was_newest(rig, tmp_path):
    file = record(tmp_path / "a.mcap", rig, leave_out=("cycles", "features"))
    done, found = replayed(file, rig)
    assert len(done) == TICKS and found["features"] == {"compared": 0, "why": "the recording holds none"}
    assert all(row["max"] == 0.0 for row in found["actions"].values())
    assert "features not compared: the recording holds none" in lines(found)


def test_features_of_another_policy_are_not_compared_and_actions_are(rig, tmp_path):
    recording = read_recording(record(tmp_path / "a.mcap", rig))
    ticks, left_out = recorded_ticks(recording, WATCHDOG_NS)
    done = in_lockstep(
        recording, ticks, Eye(), Actor(recording, Hand(), rig.loop._settings), lambda: False, lambda n: None
    )
    found = report(recording, done, left_out, "another")
    assert found["features"] == {"compared": 0, "why": "recorded by policy policy, another one than another"}
    assert found["actions"]["a"]["max"] == 0.0


def test_in_wall_clock_time_a_fast_encoder_sees_every_capture_and_a_slow_one_only_the_newest(rig, tmp_path):
    file = record(tmp_path / "a.mcap", rig)
    clock = FakeClock(5)
    fast = Eye(clock=clock, encode_ms=10.0)
    done, found = replayed(file, rig, fast, clock=clock)
    assert fast.seen[:5] == [1, 1, 2, 3, 4] or fast.seen[:4] == [1, 2, 3, 4]
    assert set(fast.seen) == set(range(1, TICKS + 1)) and len(done) == TICKS
    assert all(tick.feature_age_ms == pytest.approx(80.0) for tick in done)  # the capture of its own period
    clock = FakeClock(5)
    slow = Eye(clock=clock, encode_ms=250.0)
    done, found = replayed(file, rig, slow, clock=clock)
    assert slow.seen == sorted(slow.seen) and len(set(slow.seen)) < TICKS / 2
    ages = [tick.feature_age_ms for tick in done if tick.feature_age_ms is not None]
    assert min(ages) >= 250.0 and max(ages) <= 250.0 * 2 + 100
    assert found["ticks"]["faults"]["no features yet"] == 2
    assert found["feature_age_ms"]["replayed"]["p50"] > found["feature_age_ms"]["recorded"]["p50"]
    assert clock.now_ns() - 5 >= (TICKS - 1) * PERIOD_NS  # it took as long as the recording


def test_features_too_old_for_the_config_are_a_hold_and_not_an_action(rig, tmp_path):
    clock = FakeClock(5)
    _, found = replayed(record(tmp_path / "a.mcap", rig), rig, Eye(clock=clock, encode_ms=620.0), clock=clock)
    assert found["ticks"]["faults"]["features # ms old, past hold_after_ms #"] > 0


def test_a_stopped_replay_keeps_what_it_has(rig, tmp_path):
    recording = read_recording(record(tmp_path / "a.mcap", rig))
    ticks, _ = recorded_ticks(recording, WATCHDOG_NS)
    shown: list[int] = []
    act = Actor(recording, Hand(), rig.loop._settings)
    done = in_lockstep(recording, ticks, Eye(), act, lambda: len(shown) >= 3, shown.append)
    assert len(done) == 3 == shown[-1]


def test_a_head_that_needs_a_window_says_what_the_recording_lacks(rig, tmp_path):
    class Recent(Hand):
        window_samples = 8

    _, found = replayed(record(tmp_path / "a.mcap", rig), rig, head=Recent())
    assert found["ticks"]["compared"] == 0
    assert "no window of the last # states" in next(iter(found["ticks"]["faults"]))


def test_an_operators_stop_is_no_tick(rig, tmp_path):
    file = tmp_path / "a.mcap"
    with RecordingWriter(file, two_joint_spec(), images=ImageCodec("webp")) as writer:
        writer.write(State(1, 5, np.zeros(2)))
        writer.write(frames(two_joint_spec(), 1, 5))
        writer.write(ActionChunk(1, 10, 0, None, Mode.STOP, np.empty((0, 0)), 0.1, 10))
    ticks, left_out = recorded_ticks(read_recording(file), WATCHDOG_NS)
    assert not ticks and left_out == {"mode STOP": 1}
