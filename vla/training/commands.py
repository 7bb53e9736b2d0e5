"""What `launch.py train` does, once it is known where data comes from: a place to train, or recordings.

Long work is split over processes by running the same command again with a hidden `--stage`; nothing is handed over but
files.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from control.host import end_on_sigterm
from control.messages import RobotSpec
from vla.errors import TrainingFault
from vla.policy_spec import HeadChoice, WindowChoice, identify
from vla.training.begin import check_start
from vla.training.curriculum import (
    BatchPolicy,
    PolicyOnDisk,
    on_processes,
    prepare,
    run_stage,
    save_features,
    train_embedded,
)
from vla.training.curve import save_curve
from vla.training.dataset import Batch, Rehearsal
from vla.training.parts import HeadSchedule
from vla.training.place import work_folder
from vla.training.rounds import Order, RoundPlan
from vla.training.train import Schedule, Shape, train

HORIZON = 8  # rows of a chunk
HIDDEN, LAYERS, HEAD_STEPS = 512, 3, 6000
PRACTICE_SHARE = 0.2  # of the minutes, where nobody says: the head alone, on facts that it is told
OWN_AFTER = 0.28  # of the minutes: from then on, half of the frames come from the policy's own episodes


class Source(Protocol):
    """A place to train: a simulator with an expert."""

    period_s: float
    objects: int
    facts: tuple[str, ...]  # what there is to know of an instruction, by name
    kinds: tuple[str, ...]  # of its tasks, by name

    @property
    def robot(self) -> RobotSpec: ...

    @property
    def wordings(self) -> list[str]: ...

    def batches(
        self, seed: int, horizon: int, current: Callable[[], Any], log: Callable[[str], None]
    ) -> Iterator[Batch]: ...

    def practice(
        self, seed: int, horizon: int, current: Callable[[], Any], log: Callable[[str], None]
    ) -> Iterator[Rehearsal]: ...

    def held_out(self, horizon: int) -> Sequence[Batch]: ...

    def collect(self, policy: Any, seed: int, frames: int, horizon: int, expert_share: float) -> Any: ...


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """As `launch.py train` takes them."""

    out: Path
    start_from: Path | None
    head_only: bool
    minutes: float
    rounds: int
    frames: int
    max_age_ms: float
    head: str | None  # None: that of `start_from`, or regression
    patience: int | None
    workers: int
    device: str
    seed: int
    overwrite: bool
    steps: int | None = None  # of the head alone, or of all on recordings
    optional_cameras: tuple[str, ...] = ()  # to do without where they fail, end to end
    window: WindowChoice | None = None  # of recorded states
    practice: float = PRACTICE_SHARE  # of the minutes, on the simulator

    @property
    def head_choice(self) -> HeadChoice:
        kind = "regression" if self.head is None else self.head
        if kind not in ("regression", "flow-matching"):
            raise TrainingFault(f"--head takes regression or flow-matching, got '{kind}'")
        return HeadChoice(kind=kind, hidden=HIDDEN, layers=LAYERS)  # type: ignore[arg-type] - checked above

    @property
    def head_steps(self) -> int:
        """Of a head that is trained alone."""
        return HEAD_STEPS if self.steps is None else self.steps

    def arguments(self) -> list[str]:
        """The same options as words of a command line; --overwrite is left out, it was dealt with."""
        window = self.window
        said: dict[str, object] = {
            "out": self.out.resolve(),
            "minutes": self.minutes,
            "seed": self.seed,
            "rounds": self.rounds,
            "frames": self.frames,
            "max-age": self.max_age_ms,
            "practice": self.practice,
            "device": self.device,
            "workers": self.workers,
            "steps": self.steps,
            "head": self.head,
            "from": self.start_from,
            "optional-cameras": ",".join(self.optional_cameras) or None,
            "patience": self.patience,
            "window": window.samples if window else None,
            "window-hz": window.rate_hz if window else None,
        }
        return ["train", *(word for name, v in said.items() if v is not None for word in (f"--{name}", str(v)))]


def train_on_simulator(
    options: TrainOptions,
    source: Source,
    words: Sequence[str],
    script: Path,
    log: Callable[[str], None],
    stage: str,
) -> None:
    """The whole curriculum, or the `stage` of it that this process was started for.

    `words` are the arguments that describe `source`, `script` is the command line that is run again.
    """
    torch.set_num_threads(1)
    match stage.split(":"):
        case [""]:
            if options.start_from is not None:
                check_start(options.start_from, options.window, needs_readout=True)
            again = [str(script), *options.arguments(), *words]
            plan = RoundPlan(
                options.rounds,
                options.frames,
                steps=max(1, options.head_steps // 4),
                last_steps=options.head_steps,
                workers=options.workers,
                max_age_ms=options.max_age_ms,
                seed=options.seed,
                head=None if options.start_from else _reading(options.head_choice, source),
            )

            def collect(order: Order) -> list[str]:
                what = f"collect:{order.seed}:{order.frames}:{order.expert_share}:{order.file}"
                return [sys.executable, *again, "--stage", what]

            backbone = on_processes([*again, "--stage", "backbone"], options.workers)
            end_on_sigterm()
            train_embedded(options.out, backbone, collect, plan, options.overwrite, log, _asked(options, source))
        case ["backbone"]:
            _backbone(options, source, log)
        case ["collect", seed, frames, share, *rest]:
            policy = BatchPolicy(options.out)
            found = source.collect(policy, int(seed), int(frames), HORIZON, float(share))
            save_features(found, Path(":".join(rest)))
            done = sum(success for _, _, success in found.outcomes)
            log(f"  {len(found.frame_tick)} frames; the policy alone did {done} of {len(found.outcomes)} tasks")
        case _:
            raise TrainingFault(f"unknown stage '{stage}'")


def train_on_features(options: TrainOptions, features: Path, log: Callable[[str], None]) -> None:
    """A new head for the policy in `start_from`, on features that the rounds of its training left in a folder."""
    from vla.training.from_recordings import train_on_kept

    torch.set_num_threads(1)
    if options.start_from is None:
        raise TrainingFault("--features needs --from: the policy whose backbone made them")
    schedule = HeadSchedule(
        options.head_steps, 1024, max_age_ms=options.max_age_ms, patience=options.patience, seed=options.seed
    )
    curve = train_on_kept(
        options.out, options.start_from, features, options.head_choice, schedule, log, options.overwrite
    )
    log(save_curve(curve, work_folder(options.out) / "curve"))


def _asked(options: TrainOptions, source: Source) -> dict[str, Any]:
    """All that decides what comes out of the end-to-end stage, by name."""
    begun = options.start_from
    is_itself = begun is not None and begun.resolve() == options.out.resolve()
    return {
        "seed": options.seed,
        "minutes": options.minutes,
        "practice": options.practice,
        "patience": options.patience,
        "head": options.head_choice.kind if begun is None else None,
        "optional_cameras": ",".join(options.optional_cameras),
        "from": "the folder itself" if is_itself else begun and identify(begun),
        **_made_of(options, source),
    }


def _made_of(options: TrainOptions, source: Source) -> dict[str, str | float]:
    return {"tasks": ",".join(source.kinds), "max_age_ms": options.max_age_ms}


def _reading(head: HeadChoice, source: Source) -> HeadChoice:
    """The head with a readout of the source's facts."""
    return head.model_copy(update={"readout": source.facts})


def _backbone(options: TrainOptions, source: Source, log: Callable[[str], None]) -> None:
    shape = Shape(HORIZON, source.period_s, "tabletop", _reading(options.head_choice, source), source.objects)
    shape = replace(shape, optional_cameras=options.optional_cameras)
    schedule = Schedule(
        minutes=options.minutes, patience=options.patience, seed=options.seed, practice=options.practice
    )
    train(
        lambda seed: source.batches(seed, HORIZON, PolicyOnDisk(options.out, OWN_AFTER * options.minutes), log),
        source.held_out(HORIZON),
        options.out,
        source.robot,
        shape,
        source.wordings,
        schedule,
        log,
        start_from=options.start_from,
        overwrite=True,
        resume=True,
        device=options.device,
        situations=lambda seed, current: source.practice(seed, HORIZON, current, log),
        new_readout=options.start_from is not None,
        made_of=_made_of(options, source),
    )


def _silent(line: str) -> None:
    """Of several processes the first tells."""


def train_on_recordings(
    options: TrainOptions, data: Sequence[Path], script: Path, log: Callable[[str], None], stage: str
) -> None:
    """End to end on recordings, or with `head_only` pooling and head on features of a backbone that stays.

    With more than one worker, `script` is run again with `stage` in each of so many processes.
    """
    from vla.training.from_recordings import train_end_to_end, train_head_only
    from vla.training.recorded import load_recordings

    if stage not in ("", "recordings"):
        raise TrainingFault(f"unknown stage '{stage}'")
    torch.set_num_threads(1)
    if options.start_from is not None and not options.head_only:
        check_start(options.start_from, options.window, needs_readout=False)
    if options.workers > 1 and not options.head_only and not stage:
        words = [word for path in data for word in ("--data", str(path.resolve()))]
        command = on_processes([str(script), *options.arguments(), *words, "--stage", "recordings"], options.workers)
        prepare(options.out, options.overwrite)
        end_on_sigterm()
        run_stage(command)
        return
    if os.environ.get("RANK", "0") != "0":
        log = _silent
    found = load_recordings(data, HORIZON, log, options.window)
    head = options.head_choice
    if not options.head_only:
        train_end_to_end(
            options.out,
            found,
            head,
            HORIZON,
            Schedule(options.minutes, options.steps, patience=options.patience, seed=options.seed),
            options.max_age_ms,
            log,
            options.start_from,
            options.overwrite,
            options.device,
            options.optional_cameras,
            options.window,
            is_prepared=stage != "",
        )
        return
    if options.start_from is None:
        raise TrainingFault("--head-only needs --from: the policy folder whose backbone is kept")
    steps = HeadSchedule(
        options.head_steps, max_age_ms=options.max_age_ms, patience=options.patience, seed=options.seed, batch=256
    )
    curve = train_head_only(
        options.out,
        found,
        options.start_from,
        head,
        HORIZON,
        steps,
        log,
        options.overwrite,
        options.device,
        options.window,
    )
    log(save_curve(curve, work_folder(options.out) / "curve"))
