import dataclasses

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.errors import WireError
from control.wire import SCHEMAS, TOPICS, decode, encode
from tests.nouns import EXAMPLES


def same(ours, theirs):
    if isinstance(ours, np.ndarray):
        return ours.dtype == theirs.dtype and np.array_equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[key], theirs[key]) for key in ours)
    return ours == theirs


@pytest.mark.parametrize("topic", SCHEMAS)
def test_every_noun_comes_back_as_it_was_sent(topic):
    noun = EXAMPLES[topic]
    back = decode(topic, encode(noun))
    for field in dataclasses.fields(noun):
        assert same(getattr(noun, field.name), getattr(back, field.name)), field.name


def test_every_noun_has_a_topic():
    assert set(TOPICS.values()) == set(EXAMPLES)


def test_received_arrays_cannot_be_written():
    assert not decode("state", encode(EXAMPLES["state"])).values.flags.writeable


@given(st.sampled_from(sorted(SCHEMAS)), st.binary(max_size=300))
def test_random_bytes_are_refused_with_a_wire_error(topic, data):
    with pytest.raises(WireError, match=f"^{topic}: "):
        decode(topic, data)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@given(st.sampled_from(sorted(SCHEMAS)), st.data())
def test_a_message_with_one_field_replaced_is_either_well_formed_or_refused(topic, data):
    fields = msgpack.unpackb(encode(EXAMPLES[topic]))
    name = data.draw(st.sampled_from(sorted(fields)))
    fields[name] = data.draw(PLAIN)
    try:
        noun = decode(topic, msgpack.packb(fields))
    except WireError as error:
        assert str(error).startswith(f"{topic}")
        return
    assert type(noun) is SCHEMAS[topic][0]


@given(st.sampled_from(sorted(SCHEMAS)), st.data())
def test_a_flipped_byte_never_crashes(topic, data):
    raw = bytearray(encode(EXAMPLES[topic]))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        decode(topic, bytes(raw))
    except WireError as error:
        assert str(error)


def packed(topic, /, **changes):
    fields = msgpack.unpackb(encode(EXAMPLES[topic])) | changes
    return msgpack.packb({key: value for key, value in fields.items() if value is not ...})


@pytest.mark.parametrize(
    ("topic", "changes", "message"),
    [
        ("state", {"v": 2}, "state: expected wire version v=1; the sender runs another version of Saccade"),
        ("state", {"value": 1}, "state: unknown field 'value'; did you mean 'values'?"),
        ("state", {"values": ...}, "state: missing values"),
        ("state", {"seq": -1}, "state.seq: expected an integer in 0..9223372036854775807, got -1"),
        (
            "state",
            {"values": {"dtype": "|O", "shape": [1], "data": b"12345678"}},
            "state.values: expected dtype float64, got '|O'",
        ),
        (
            "state",
            {"values": {"dtype": "float64", "shape": [2], "data": b"1234"}},
            "state.values: expected 16 bytes for float64 [2], got 4",
        ),
        (
            "state",
            {"values": {"dtype": "float64", "shape": [2**40], "data": b""}},
            "state.values: expected a shape of at most [128], got [1099511627776]",
        ),
        ("instruction", {"text": "x" * 1001}, "instruction.text: expected text of 1..1000 characters, got str 'xxxx"),
        ("action", {"mode": "GO"}, "action.mode: expected one of INIT, RUN, HOLD, STOP, got 'GO'"),
        ("frames", {"topic": "state"}, "frames: the message names another topic"),
    ],
)
def test_a_bad_message_names_field_expected_and_got(topic, changes, message):
    with pytest.raises(WireError) as caught:
        decode(topic, packed(topic, **changes))
    assert str(caught.value).startswith(message)


def test_extension_types_are_refused():
    with pytest.raises(WireError):
        decode("reply", packed("reply", values={"a": msgpack.ExtType(5, b"x")}))


def test_a_spec_with_nan_limits_is_refused():
    spec = packed("robot", action_low={"dtype": "float64", "shape": [2], "data": np.array([np.nan, 0.0]).tobytes()})
    with pytest.raises(WireError, match="robot: robot 'two-joint': action_low holds NaN"):
        decode("robot", spec)


def test_a_message_over_its_cap_is_refused_before_it_is_parsed():
    with pytest.raises(WireError, match="instruction: expected at most 16384 bytes, got 20000"):
        decode("instruction", bytes(20000))
