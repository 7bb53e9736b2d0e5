"""`train`. The simulator to train on is given: this folder knows none.

Imports stay inside the command, so that no other one starts slower.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from control.commands import ROOT

if TYPE_CHECKING:
    from vla.training.commands import Source


# What each way of training has no use for; an option that did nothing would be believed to have done something.
_HEAD_ALONE = ("minutes", "workers", "practice", "rounds", "frames", "tasks", "optional_cameras")
_UNUSED = {
    "--features": (*_HEAD_ALONE, "data", "head_only", "device", "window"),
    "--head-only": _HEAD_ALONE,
    "--data": ("practice", "rounds", "frames", "tasks"),
    "training without --rounds": ("steps", "frames"),
}
_INSTEAD = {"minutes": ", which takes --steps", "workers": ", which runs in one process"}


def _refuse_unused(way: str, given: Callable[[str], bool]) -> None:
    for name in filter(given, _UNUSED.get(way, ())):
        raise typer.BadParameter(f"--{name.replace('_', '-')} is not for {way}{_INSTEAD.get(name, '')}: leave it out")


def train_app(source_of: Callable[[str, float], Source], task_names: str) -> typer.Typer:
    """The command. `source_of` gives what to learn on: tasks by name, and the oldest features in ms. `task_names` says
    in words which there are.
    """
    app = typer.Typer()
    asked = f"What to learn on the simulator, with commas: {task_names}."
    tasks_option = typer.Option("all", metavar="NAMES", help=asked)  # annotations are read where there is no task_names

    @app.command(rich_help_panel="Learn")
    def train(
        context: typer.Context,
        out: Annotated[Path, typer.Option(help="Policy folder to write.")],
        data: Annotated[
            list[Path] | None,
            typer.Option(metavar="FILE|DIR", help="Recordings to train on, instead of the simulator. May be repeated."),
        ] = None,
        from_: Annotated[
            Path | None,
            typer.Option(
                "--from",
                help="Policy folder to begin with; needed for --head-only.",
            ),
        ] = None,
        head_only: Annotated[
            bool,
            typer.Option("--head-only", help="Keep the backbone: encode --data once, train pooling and head on it."),
        ] = False,
        features: Annotated[
            Path | None,
            typer.Option(
                help="Train another head for --from, on the features that the rounds of a training left here."
            ),
        ] = None,
        tasks: str = tasks_option,
        minutes: Annotated[
            float,
            typer.Option(
                min=0.01,
                help="Of the whole training, practice counted in; not with --head-only, which takes --steps.",
            ),
        ] = 120.0,
        practice: Annotated[
            float,
            typer.Option(
                min=0.0,
                max=1.0,
                help="Share of the minutes in which the head alone practises first, on facts that the simulator tells;"
                " 1: nothing else is trained.",
            ),
        ] = 0.2,
        rounds: Annotated[int, typer.Option(min=0, help="Then so many rounds that train the head alone.")] = 0,
        frames: Annotated[
            int, typer.Option(min=64, help="Frames of such a round, from the policy's own episodes.")
        ] = 16000,
        max_age: Annotated[float, typer.Option(metavar="MS", min=0.0, help="Oldest features to train with.")] = 1000.0,
        head: Annotated[str, typer.Option(help="regression, or flow-matching.")] = "regression",
        patience: Annotated[
            int | None, typer.Option(min=1, help="End after so many measurements without a better held-out error.")
        ] = None,
        workers: Annotated[int, typer.Option(min=1, help="Processes; one a core, or one a GPU.")] = 1,
        device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
        seed: Annotated[int, typer.Option(min=0, help="Seed of scenes and weights.")] = 0,
        overwrite: Annotated[
            bool, typer.Option("--overwrite", help="Replace a policy that lies there already.")
        ] = False,
        steps: Annotated[
            int | None,
            typer.Option(
                min=1,
                show_default="6000 of the head alone; end to end the minutes alone count",
                help="Of the head, where it is trained alone; or of all with --data.",
            ),
        ] = None,
        optional_cameras: Annotated[
            str,
            typer.Option(
                metavar="NAMES", help="Cameras to learn to do without, with commas: grey in a tenth of what is seen."
            ),
        ] = "",
        window: Annotated[
            int | None,
            typer.Option(metavar="SAMPLES", min=2, max=1024, help="Of --data: the last states are an input, so many."),
        ] = None,
        window_hz: Annotated[
            float, typer.Option(metavar="HZ", min=10, max=1000, help="The robot.host_hz at which they were recorded.")
        ] = 100.0,
        stage: Annotated[str, typer.Option(hidden=True)] = "",
    ) -> None:
        """Train a policy, on the simulator or on recordings. The same command again goes on after an interrupt."""
        from vla.policy_spec import WindowChoice
        from vla.training.commands import TrainOptions, train_on_features, train_on_recordings, train_on_simulator
        from vla.training.parallel import check_device
        from vla.training.place import trained_by_one

        def given(name: str) -> bool:
            source = context.get_parameter_source(name)
            return source is not None and source.name == "COMMANDLINE" and not stage

        way = "--features" if features else "--head-only" if head_only else "--data" if data else ""
        _refuse_unused(way or ("" if rounds else "training without --rounds"), given)
        keeps_head = from_ is not None and way in ("", "--data")
        if keeps_head and given("head"):
            raise typer.BadParameter(
                "--head is for training from nothing or --head-only: the policy of --from keeps its own"
            )
        if window and not data:
            raise typer.BadParameter("--window needs --data: recordings of runs with robot.history_samples")
        if optional_cameras and (from_ or features):
            raise typer.BadParameter(
                "--optional-cameras is for training from nothing: the policy of --from has its own"
            )
        options = TrainOptions(
            out,
            from_,
            head_only,
            minutes,
            rounds,
            frames,
            max_age,
            None if keeps_head else head,
            patience,
            workers,
            device,
            seed,
            overwrite,
            steps,
            tuple(name.strip() for name in optional_cameras.split(",") if name.strip()),
            WindowChoice(samples=window, rate_hz=window_hz) if window else None,
            practice,
        )
        if head_only and not data:
            raise typer.BadParameter("--head-only needs --data: recordings to train on")
        check_device(device, workers)
        script = ROOT / "launch.py"
        source = None if features or data else source_of(tasks, max_age)
        with trained_by_one(out, is_stage=stage != ""):
            if features:
                train_on_features(options, features, typer.echo)
            elif data:
                train_on_recordings(options, data, script, typer.echo, stage)
            elif source is not None:
                train_on_simulator(options, source, ["--tasks", tasks], script, typer.echo, stage)

    return app
