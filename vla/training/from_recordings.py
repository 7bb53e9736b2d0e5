"""Training on recordings: end to end, or pooling and head on features of a backbone that are encoded once and kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from control.clock import NS_PER_MS
from vla.errors import TrainingFault
from vla.policy_spec import HEAD_FILE, POLICY_FILE, HeadChoice, WindowChoice, identify, load_spec
from vla.training import checkpoint
from vla.training.features import BatchEncoder, FeatureSet
from vla.training.parts import HeadSchedule, TrainedParts, save_beside, train_parts
from vla.training.place import work_folder, written
from vla.training.provenance import versions
from vla.training.recorded import Recorded, RecordedEpisode, batches, held_out_batches, span
from vla.training.rounds import collected
from vla.training.train import Schedule, Shape, train

FRAMES, ACTING = 24, 6  # of a batch
ENCODE_AT_ONCE = 8


def train_end_to_end(
    out: Path,
    found: Recorded,
    head: HeadChoice,
    horizon: int,
    schedule: Schedule,
    max_age_ms: float,
    log: Callable[[str], None],
    start_from: Path | None = None,
    overwrite: bool = False,
    device: str = "cpu",
    optional_cameras: tuple[str, ...] = (),
    window: WindowChoice | None = None,
    is_prepared: bool = False,
) -> None:
    """Backbone, pooling and head, from nothing or from a policy of the same shape; goes on after an interrupt.

    `is_prepared`: whoever started several of these processes has looked at `out` already.
    """
    log("no ground truth in recordings: perception learns from the actions alone, which takes far more data")
    shape = Shape(
        horizon, found.period_s, found.robot.name, head, queries=1, window=window, optional_cameras=optional_cameras
    )
    train(
        lambda seed: batches(found.episodes, seed, FRAMES, ACTING, max_age_ms),
        held_out_batches(found, max_age_ms),
        out,
        found.robot,
        shape,
        found.wordings,
        schedule,
        log,
        start_from,
        overwrite=overwrite,
        resume=is_prepared or ((work_folder(out) / "state").exists() and not overwrite),
        device=device,
        made_of={**found.told, "max_age_ms": max_age_ms},
    )


def train_head_only(
    out: Path,
    found: Recorded,
    policy: Path,
    head: HeadChoice,
    horizon: int,
    schedule: HeadSchedule,
    log: Callable[[str], None],
    overwrite: bool = False,
    device: str = "cpu",
    window: WindowChoice | None = None,
) -> list[dict[str, float]]:
    """A policy in `out` with the backbone of `policy`, and pooling and head that were trained on `found`.

    Features are kept beside `out`, one file an episode, and are not encoded again by the next call.
    """
    spec = load_spec(policy)
    if problems := spec.fits(found.robot):
        raise TrainingFault(f"policy {policy} does not fit the recordings: {'; '.join(problems)}")
    folder = checkpoint.reserve(out, overwrite)
    made_by = identify(policy, not _has_head(policy))
    trains_pooling = "attention" in (spec.pooling.view, spec.pooling.aggregation)
    wanted = spec.model_copy(update={"head": head, "window": window, "horizon": horizon, "period_s": found.period_s})
    encoder = BatchEncoder(policy, spec, device, pooled=not trains_pooling)
    kept_in = work_folder(folder) / f"features-{made_by}"
    kept, held_out = (
        _encoded(encoder, part, kept_in, schedule.max_age_ms, log) for part in (found.episodes, found.held_out)
    )
    if kept is None:
        raise TrainingFault("no frame is followed by an action: nothing to train on")
    parts = TrainedParts(wanted, trains_pooling)
    curve = train_parts(parts, kept, held_out, schedule, log, renormalise=True)
    told = {"features_of": made_by, **found.told, "seed": schedule.seed, **_head_told(schedule, curve, len(kept))}
    parts.spec = parts.spec.model_copy(update={"provenance": told})
    policy_id = save_beside(policy, folder, parts)
    log(f"saved policy {policy_id} to {out}, trained on {len(kept)} frames")
    return curve


def train_on_kept(
    out: Path,
    policy: Path,
    features: Path,
    head: HeadChoice,
    schedule: HeadSchedule,
    log: Callable[[str], None],
    overwrite: bool = False,
) -> list[dict[str, float]]:
    """A policy in `out` that differs from `policy` in its head alone, trained on the features that lie in a folder.

    The same data under another head, or without the ages of deployment, shows what either of them is worth.
    """
    spec = load_spec(policy)
    kept, held_out = collected(features)
    if spec.window and kept.windows is None:
        raise TrainingFault(
            f"policy {policy} takes a window of {spec.window.samples} states, which the features in {features} lack:"
            " they are of another policy"
        )
    folder = checkpoint.reserve(out, overwrite)
    parts = TrainedParts(spec.model_copy(update={"head": head}), trains_pooling=False)
    parts.load_pooling(policy)
    curve = train_parts(parts, kept, held_out, schedule, log, renormalise=True)
    told = {"features_of": identify(policy), "head_seed": schedule.seed, **_head_told(schedule, curve, len(kept))}
    parts.spec = parts.spec.model_copy(update={"provenance": spec.provenance | told})
    policy_id = save_beside(policy, folder, parts)
    log(f"saved policy {policy_id} to {out}, trained on {len(kept)} frames")
    return curve


def _head_told(schedule: HeadSchedule, curve: list[dict[str, float]], frames: int) -> dict[str, str | int | float]:
    """What policy.yaml says of a head that was trained alone; what lies before it may be of older versions."""
    return {
        "head_steps": int(curve[-1]["step"]),
        "head_frames": frames,
        "max_age_ms": schedule.max_age_ms,
        **versions(),
    }


def _has_head(policy: Path) -> bool:
    return (policy / HEAD_FILE).is_file() or not (policy / POLICY_FILE).is_file()


def _encoded(
    encoder: BatchEncoder,
    episodes: Iterable[RecordedEpisode],
    folder: Path,
    max_age_ms: float,
    log: Callable[[str], None],
) -> FeatureSet | None:
    with written(folder):
        folder.mkdir(parents=True, exist_ok=True)
    sets = []
    for number, episode in enumerate(episodes):
        file = folder / f"{_key(episode, max_age_ms)}.safetensors"
        if not file.is_file():
            features = _encode(encoder, episode, max_age_ms)
            if features is None:
                continue
            features.save(file)
            if number % 20 == 0:
                log(f"  encoded {number + 1} episodes")
        sets.append(FeatureSet.load(file))
    return FeatureSet.joined(sets) if sets else None


def _key(episode: RecordedEpisode, max_age_ms: float) -> str:
    digest = hashlib.sha256(f"{episode.text}\n{max_age_ms}\n".encode())
    arrays = (episode.frame_ns, episode.tick_ns, episode.states, episode.targets, episode.windows)
    for array in (array for array in arrays if array is not None):
        digest.update(np.ascontiguousarray(array).tobytes())
    for frame in episode.frames:
        for name in sorted(frame.images):
            digest.update(frame.images[name].data)
    return digest.hexdigest()[:20]


def _encode(encoder: BatchEncoder, episode: RecordedEpisode, max_age_ms: float) -> FeatureSet | None:
    spans = [span(episode, index, max_age_ms) for index in range(len(episode.frames))]
    chosen = [index for index, (first, end) in enumerate(spans) if first < end]
    if not chosen:
        return None
    tokens = []
    for begin in range(0, len(chosen), ENCODE_AT_ONCE):
        images = [episode.frames[index].decode().images for index in chosen[begin : begin + ENCODE_AT_ONCE]]
        stacked = {name: np.stack([image[name] for image in images]) for name in images[0]}
        tokens.append(encoder.features(stacked, [episode.text] * len(images)).astype(np.float16))
    origin = episode.frame_ns[chosen[0]]
    return FeatureSet(
        np.concatenate(tokens),
        np.array([spans[index][0] for index in chosen]),
        np.array([spans[index][1] - 1 for index in chosen]),
        (np.concatenate([episode.frame_ns[chosen], episode.tick_ns]) - origin) / NS_PER_MS,
        episode.states,
        episode.targets,
        episode.windows,
    )
