"""What the page shows of what it hears, and that nothing from the wire is more than text to it."""

import json
import threading
import time

import numpy as np
import pytest
from paged import cycle

from control.bus import Publisher
from control.errors import RobotError
from control.messages import ActionChunk, Cycle, Features, Frames, Instruction, RobotSpec, State
from control.page_arm import Link, drawable
from control.page_bus import PageBus
from control.plain_text import find_unseen, is_unseen, shown
from control.rate_limit import Budget


@pytest.fixture
def feed(bus):
    """A page's bus side, and a function that publishes nouns until it has taken them."""
    topics = ("robot", "frames", "state", "features", "instruction", "action", "cycle")
    ports = {topic: Publisher(bus, topic, queue=100) for topic in topics}
    page = PageBus(bus)
    page.look(True)
    kinds = {RobotSpec: "robot", Frames: "frames", State: "state", Features: "features", Instruction: "instruction"}
    kinds |= {ActionChunk: "action", Cycle: "cycle"}

    def publish(noun, is_taken):
        ends_s = time.monotonic() + 20
        while not is_taken():
            assert time.monotonic() < ends_s, f"{type(noun).__name__} was never taken"
            ports[kinds[type(noun)]].send(noun)
            threading.Event().wait(0.02)
            page.step()

    yield page, publish
    page.close()
    for port in ports.values():
        port.close()


def grey(value):
    return {"front": np.full((16, 24, 3), value, np.uint8), "spare": np.full((16, 24, 3), 9, np.uint8)}


def pictures(message):
    import io

    from PIL import Image

    length = int.from_bytes(message[:4], "big")
    listed, at = json.loads(message[4 : 4 + length])["views"], 4 + length
    values = {}
    for view in listed:
        data = message[at : at + view["bytes"]]
        at += view["bytes"]
        values[view["camera"]] = round(np.asarray(Image.open(io.BytesIO(data))).mean()) if data else None
    assert at == len(message)
    return {view["camera"]: view for view in listed}, values


def test_a_view_is_the_capture_that_was_encoded_and_not_the_newest(feed):
    page, publish = feed
    now_ns = time.monotonic_ns()
    for seq, value in ((1, 50), (2, 100), (3, 200)):
        frames = Frames(seq, now_ns - (3 - seq) * 100_000_000, grey(value))
        publish(frames, lambda seq=seq: page._captures and page._captures[-1].seq == seq)
    views, values = pictures(page.views())
    assert values["front"] == 200 and not views["front"]["is_encoded"]  # nothing is encoded yet

    def encoded(seq, age_ms):
        tokens = np.zeros((1, 4), np.float32)
        return Features(seq, now_ns, 2, now_ns - 100_000_000, 1, 1, 7, "p", tokens, {"front": age_ms}, 9.0)

    publish(encoded(1, 0.0), lambda: page._encoded is not None)
    views, values = pictures(page.views())
    assert values == {"front": 100, "spare": 9}
    assert views["front"]["is_encoded"] and views["front"]["age_ms"] >= 100 and not views["spare"]["is_encoded"]
    publish(encoded(2, 100.0), lambda: page._encoded.seq == 2)  # the view was used again, of the capture before
    assert pictures(page.views())[1]["front"] == 50
    publish(encoded(3, 900.0), lambda: page._encoded.seq == 3)  # never seen here
    views, values = pictures(page.views())
    assert values["front"] is None and views["front"]["bytes"] == 0
    page.look(False)
    assert page.views() is None


def test_instructions_are_followed_from_waiting_to_done_whoever_said_them(feed):
    page, publish = feed

    def say(number, text):
        publish(Instruction(0, 1, 5, number, text), lambda: page.said and page.said[-1].id == number)

    def tick(seq, **changes):
        count = page.count
        publish(cycle(seq, **changes), lambda: page.count > count)
        return [item.state for item in page.said]

    say(1, "touch <img src=x> \u202eit\x07")
    assert page.said[0].text == "touch <img src=x> \\u202eit\\u0007"
    assert tick(1, instruction_id=0, pending_id=1) == ["waiting"]
    assert tick(2, instruction_id=1, switch_ms=61.0) == ["acting"] and page.said[0].switch_ms == 61.0
    say(2, "b")
    say(3, "c")
    assert tick(3, instruction_id=1, pending_id=3) == ["acting", "replaced", "waiting"]
    assert tick(4, instruction_id=3, task_done=True, task_instruction_id=3) == ["past", "replaced", "acting"]
    assert page.said[2].task_done is True


def test_a_row_holds_nan_and_infinity_as_nothing_and_memory_is_bounded(feed):
    page, publish = feed
    publish(State(1, 1, np.array([np.nan, 1.0])), lambda: page._state is not None)
    publish(cycle(1, reason="the state of a is nan\x1b[31m"), lambda: page.count > 0)
    row = page.rows[-1]
    assert row["measured"] == [None, 1.0] and row["target"] == [] and row["reason"].endswith("\\u001b[31m")
    json.dumps(row, allow_nan=False)
    for number in range(2000):
        page._follow(cycle(number))
        page.rows.append(row)
        page._hear(Instruction(0, 1, 5, number + 1, "x"))
        page._keep(Frames(number, number * 10_000_000, {"front": np.zeros((1000, 1000, 3), np.uint8)}))
    assert len(page.rows) == 600 and len(page.said) == 50
    assert sum(capture.images["front"].nbytes for capture in page._captures) <= 64 << 20


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_page_on_another_machine_tells_age_and_silence_by_the_robots_clock(feed, hours):
    page, publish = feed
    ahead_ns = hours * 3_600_000_000_000
    publish(cycle(1, stamp_ns=time.monotonic_ns()), lambda: page.count == 1)
    assert page.now_ns() == pytest.approx(time.monotonic_ns(), abs=5e6)  # the same machine: the same clock
    for seq in range(2, 5):  # and then the robot's machine is another one
        publish(cycle(seq, stamp_ns=time.monotonic_ns() + ahead_ns), lambda seq=seq: page.count == seq)
    silence_ms = page.now_ns() / 1e6 - page.rows[-1]["t_ms"]
    assert 0 <= silence_ms < 200
    time.sleep(0.3)
    assert page.now_ns() / 1e6 - page.rows[-1]["t_ms"] > silence_ms + 290  # nothing comes: the silence grows


@pytest.mark.parametrize("hours", [-1, 0, 1])
def test_the_encode_rate_is_that_of_an_encoder_with_another_clock(feed, hours):
    page, publish = feed
    began_ns = time.monotonic_ns() + hours * 3_600_000_000_000
    for seq in range(1, 6):
        features = Features(
            seq, began_ns + seq * 40_000_000, seq, 1, 1, 1, 7, "p", np.zeros((1, 4), np.float32), {"front": 0.0}, 9.0
        )
        publish(features, lambda seq=seq: page._encoded is not None and page._encoded.seq == seq)
    publish(cycle(1), lambda: page.count == 1)
    assert page.rows[-1]["encode_hz"] == pytest.approx(25.0)
    time.sleep(2.1)
    publish(cycle(2), lambda: page.count == 2)
    assert page.rows[-1]["encode_hz"] == 0.0  # it has stopped


def test_text_is_shown_with_everything_invisible_written_out():
    assert shown("<b>né 👩\u200d🔧 東京</b>") == "<b>né 👩\u200d🔧 東京</b>"
    assert shown("a\u200bb\nc\ue000") == "a\\u200bb\\u000ac\\ue000"
    assert find_unseen("tap the red block") is None and is_unseen("\u2066")
    assert len(shown("x" * 5000)) == 1000


def test_a_budget_gives_its_burst_and_then_its_rate():
    budget = Budget(rate_hz=0.001, burst=3)
    assert [budget.take() for _ in range(5)] == [True, True, True, False, False]


class Arm:
    def __init__(self, spec, links):
        self.spec, self.links = spec, links


def test_the_arm_is_drawn_from_links_that_are_checked(spec):
    joint = spec.state_names[0]
    (link,) = drawable(Arm(spec, [Link("upper", "", (0.0, 0.0, 0.3), joint)]))
    assert link["name"] == "upper" and link["state"] == joint and link["kind"] == "turn"
    assert drawable(object()) == []
    for bad, fault in (
        ([Link("a", "b", (0, 0, 1))], "the parent 'b' of 'a' does not stand before it"),
        ([Link("a", "", (0, 0, 1)), Link("a", "", (0, 0, 1))], "expected names that differ, got 'a' again"),
        ([Link("a", "", (0, 0, 1), "tail")], "'a' moves with 'tail', which is no state of the robot"),
        ([Link("a", "", (0, 0, float("nan")))], "'a' has an origin, axis or gain"),
    ):
        with pytest.raises(RobotError, match=fault):
            drawable(Arm(spec, bad))
