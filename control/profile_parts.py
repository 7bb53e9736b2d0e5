"""The age of the features that a cycle acted on, split into where it went. The parts add up to the age.

    frame stamp - camera - published - queue - encode begins - stages - stamped - transport - arrived - cache - tick

Frame stamp, publication, arrival and tick are on the robot's clock, the two ends of the encode on the encoder's. Where
that is another machine's, or where a stamp is missing (a recording of before, a robot host that does not stamp), the
two parts that cannot be told apart are named together, such as `queue + transport`; nothing is estimated.

`queue` is everything from publication until the encoder began: the way there, waiting for the encode before, pauses of
`max_rate_hz`. `reuse` is how much older than the frame the oldest view inside is. Arrival is stamped while the
controller waits; in the last 2 ms before a tick it does not look, so that much at most counts as transport for cache.
"""

from __future__ import annotations

from control.clock import NS_PER_MS
from control.messages import Cycle
from control.profile_source import Encode, Samples

# in the order of time; the names of stages are the encoder's
PARTS = ("reuse", "camera", "queue", "preprocess", "vision", "language", "aggregate", "other", "transport", "cache")
_TOLERANCE_NS = NS_PER_MS
_STAGE_OF = {"prefix": "language"}  # the instruction's part of the language model, once an instruction


def encode_parts(encode: Encode) -> dict[str, float]:
    """The stages in ms, and `other`: what of the encode no stage covers. They add up to `encode_ms`."""
    parts: dict[str, float] = {}
    for stage, value in encode.stage_ms.items():
        name = _STAGE_OF.get(stage, stage)
        parts[name] = parts.get(name, 0.0) + value
    parts["other"] = encode.encode_ms - sum(encode.stage_ms.values())
    return parts


def foreign_epochs(samples: Samples) -> set[int]:
    """The encoders whose stamps cannot be of the robot's clock: most of their encodes begin before their frame was
    published, or end after they were read. Most, since an interrupted tick can read features younger than itself.
    """
    told: dict[int, list[bool]] = {}
    for cycle in samples.cycles:
        encode = _used(cycle, samples)
        if encode is None:
            continue
        first_ns = encode.frame_published_ns or encode.frame_stamp_ns
        last_ns = cycle.stamp_ns if cycle.feature_arrived_ns is None else cycle.feature_arrived_ns
        is_foreign = encode.begun_ns < first_ns - _TOLERANCE_NS or encode.stamp_ns > last_ns + _TOLERANCE_NS
        told.setdefault(encode.epoch, []).append(is_foreign)
    return {epoch for epoch, votes in told.items() if sum(votes) > len(votes) / 2}


def age_parts(cycle: Cycle, samples: Samples, foreign: set[int]) -> dict[str, float] | None:
    """Parts of `cycle.feature_age_ms` in ms, None where the cycle has no features or their message was not heard."""
    encode = _used(cycle, samples)
    if encode is None or cycle.feature_age_ms is None:
        return None
    published_ns, arrived_ns = encode.frame_published_ns, cycle.feature_arrived_ns
    parts = {"reuse": encode.reuse_ms}
    if encode.epoch not in foreign:
        parts |= _between(encode.frame_stamp_ns, "camera", published_ns, "queue", encode.begun_ns)
        parts |= encode_parts(encode)
        parts |= _between(encode.stamp_ns, "transport", arrived_ns, "cache", cycle.stamp_ns)
        return parts
    unknown = cycle.stamp_ns - encode.frame_stamp_ns - round(encode.encode_ms * NS_PER_MS)
    names = ["queue", "transport"]
    if published_ns is None:
        names.insert(0, "camera")
    else:
        parts["camera"] = (published_ns - encode.frame_stamp_ns) / NS_PER_MS
        unknown -= published_ns - encode.frame_stamp_ns
    if arrived_ns is None:
        names.append("cache")
    else:
        parts["cache"] = (cycle.stamp_ns - arrived_ns) / NS_PER_MS
        unknown -= cycle.stamp_ns - arrived_ns
    return parts | encode_parts(encode) | {" + ".join(names): unknown / NS_PER_MS}


def in_order(names: set[str]) -> list[str]:
    """Names of parts in the order of time; parts that cannot be told apart stand where the first of them would."""

    def place(name: str) -> float:
        first = name.partition(" + ")[0]
        return PARTS.index(first) if first in PARTS else PARTS.index("other") - 0.5

    return sorted(names, key=lambda name: (place(name), name))


def _between(begin_ns: int, first: str, middle_ns: int | None, second: str, end_ns: int) -> dict[str, float]:
    if middle_ns is None:
        return {f"{first} + {second}": (end_ns - begin_ns) / NS_PER_MS}
    return {first: (middle_ns - begin_ns) / NS_PER_MS, second: (end_ns - middle_ns) / NS_PER_MS}


def _used(cycle: Cycle, samples: Samples) -> Encode | None:
    if cycle.feature_seq is None or cycle.encoder_epoch is None:
        return None
    return samples.encodes.get((cycle.encoder_epoch, cycle.feature_seq))
