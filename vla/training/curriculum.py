"""How the embedded policy is trained from nothing: end to end on demonstrations, then rounds on its own episodes.

Each stage is a command that is run in processes of its own, so that one call uses all cores, and goes on where it was
when it is given again. Refuses to know the simulator: what the commands do is said by whoever has one.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vla.errors import FileFault, TrainingFault
from vla.policy import action_head, load_part
from vla.policy_spec import POLICY_FILE, load_spec
from vla.training import checkpoint
from vla.training.curve import save_curve
from vla.training.features import BatchEncoder, FeatureSet
from vla.training.place import clear_work, work_folder, write_text
from vla.training.rounds import Order, RoundPlan, aggregate

BACKBONE_DONE = "backbone.json"
_ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # each process has a core; torchrun says so otherwise
# glibc gives freed memory back at once, and the next step touches every page of it anew: with huge pages and nothing
# given back, forward and backward took 10 % less (the embedded backbone on one core). Others ignore it.
_KEEPS_MEMORY = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=8000000000"
    ":glibc.malloc.top_pad=268435456"
}


class BatchPolicy:
    """A policy folder for many tables at a time, as what collects wants it."""

    def __init__(self, folder: Path) -> None:
        spec = load_spec(folder)
        self._head = action_head(spec).eval()
        load_part(folder, "head", self._head)
        self.features = BatchEncoder(folder, spec).features

    @torch.inference_mode()
    def act(self, tokens, states, age_ms):  # noqa: ANN001, ANN201 - see sim.rollouts.Policy
        """(R, H, A) absolute targets from (R, T, D), (R, S) and (R,)."""
        head = self._head
        here = torch.from_numpy(states).float()
        steps = head.predict(torch.from_numpy(tokens).float(), here, torch.from_numpy(age_ms))
        return head.targets(here, steps).double().numpy()


class PolicyOnDisk:
    """The newest policy that a training has saved in a folder, read again whenever there is a newer one.

    None until it has been trained for `after_minutes`.
    """

    def __init__(self, folder: Path, after_minutes: float) -> None:
        self._folder, self._after = folder, after_minutes
        self._stamp_ns = 0
        self._policy: BatchPolicy | None = None

    def __call__(self) -> BatchPolicy | None:
        try:
            stamp_ns = (self._folder / POLICY_FILE).stat().st_mtime_ns
            if stamp_ns != self._stamp_ns:
                minutes = load_spec(self._folder).provenance.get("minutes", 0.0)
                self._policy = BatchPolicy(self._folder) if float(minutes) >= self._after else None
                self._stamp_ns = stamp_ns
        except (FileNotFoundError, FileFault):
            pass  # it is being replaced at this moment; the one before serves a little longer
        return self._policy


def on_processes(command: Sequence[str], processes: int) -> list[str]:
    """The command line that runs `command` (a script and its arguments) once in each of so many processes."""
    if processes == 1:
        return [sys.executable, *command]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nnodes=1", f"--nproc-per-node={processes}"]
    return [sys.executable, *launcher, "--master-addr=127.0.0.1", f"--master-port={port}", *command]


def ran(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """The exit code of a command, which is ended too, and waited for, when this process is interrupted."""
    process = subprocess.Popen(list(command), env=dict(environment))
    try:
        return process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def prepare(out: Path, overwrite: bool) -> Path:
    """The folder beside `out` for all that is needed on the way: empty with `overwrite`, else as it was left."""
    work = work_folder(out)
    if overwrite:
        clear_work(out)
    elif not (work / "state").exists() and not (work / BACKBONE_DONE).is_file():
        checkpoint.reserve(out, overwrite=False)
    work.mkdir(parents=True, exist_ok=True)
    return work


def run_stage(command: Sequence[str]) -> None:
    """The end-to-end stage, to its end. Raises TrainingFault where that is not a good one."""
    code = ran(command, _KEEPS_MEMORY | os.environ | _ONE_THREAD)
    if code:
        raise TrainingFault(
            f"the end-to-end stage ended with exit code {code}: see its message above; give the same command again to"
            " go on"
        )


def train_embedded(
    out: Path,
    backbone: Sequence[str],
    collect: Callable[[Order], list[str]],
    plan: RoundPlan,
    overwrite: bool,
    log: Callable[[str], None],
    asked: Mapping[str, Any],
) -> None:
    """Both stages into `out`. `backbone` is the command of the first one; it resumes by itself.

    `asked` is what the first stage was asked for, by name. Once it is done, only the same is gone on with.
    """
    folder = out.resolve()
    work = prepare(folder, overwrite)
    done = work / BACKBONE_DONE
    if done.is_file():
        _expect_done(done, folder, asked)
    else:
        run_stage(backbone)
        write_text(done, json.dumps({"options": dict(asked)}))
    curve = aggregate(folder, work / "rounds", plan, collect, log)
    if curve:
        log(save_curve(curve, work / "rounds-curve"))
    log(f"done: the policy is in {out}; what was needed on the way lies in {work.name} beside it and may be deleted")


def _expect_done(done: Path, folder: Path, asked: Mapping[str, Any]) -> None:
    """That the first stage made what is asked for now, and that it is still there."""
    try:
        saved = json.loads(done.read_text(encoding="utf-8")).get("options", {})
    except (OSError, ValueError, AttributeError) as error:
        raise TrainingFault(f"{done} cannot be read ({error}): begin anew with --overwrite") from error
    checkpoint.expect_same(done.parent, saved, asked)
    if not (folder / POLICY_FILE).is_file():
        raise TrainingFault(
            f"{folder} holds no {POLICY_FILE}, though {done.parent.name} beside it says that it was trained: it was"
            " moved or removed since; put it back, or begin anew with --overwrite"
        )


def save_features(collected: object, file: Path) -> None:
    """What a collecting process brought home, into its file."""
    fields = ("tokens", "frame_tick", "last_tick", "stamp_ms", "states", "targets")
    FeatureSet(**{name: getattr(collected, name) for name in fields}).save(file)
