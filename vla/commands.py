"""The command that needs vla/ but no robot of ours: the encoder process; and what a config means to the model side.

Imports stay inside the commands, so that no operator's command loads torch.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from control.commands import DEFAULT_CONFIG, ConfigOption, ParentOption, SetOption, process

if TYPE_CHECKING:
    from control.config import Config
    from vla.assemble import EncoderOptions
    from vla.policy_spec import PolicySpec

app = typer.Typer()


@app.command(rich_help_panel="Processes")
def encoder(config: ConfigOption = DEFAULT_CONFIG, set_: SetOption = None, parent: ParentOption = 0) -> None:
    """The encoder alone: camera frames and the instruction in, features out, as fast as it can."""
    # A model that hangs in its device would outlive a supervisor that was killed.
    settings, stopped = process("encoder", config, set_, parent, dies_with_parent=True)
    # Threads that spin while they wait make an encode on a busy two-core machine 5 to 100 times slower. Read at import.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from vla.service import run_encoder

    options = settings.encoder
    run_encoder(
        settings.bus.build(),
        Path(options.policy),
        device=options.device,
        threads=options.threads,
        random_weights=options.random_weights,
        options=encoder_options(settings),
        max_rate_hz=options.max_rate_hz,
        stopped=stopped,
    )


def adapted(settings: Config, spec: PolicySpec) -> PolicySpec:
    """The policy as the config's overrides make it; see `PolicySpec.adapted`.

    Raises MismatchError where the config gives no such window of states as the head takes.
    """
    from control.errors import MismatchError

    options = settings.encoder
    misfit = spec.find_window_misfit(settings.robot.history_samples, settings.robot.host_hz)
    if misfit and not options.random_weights:
        raise MismatchError(f"policy {options.policy} does not fit this config: {misfit}")
    cameras = None if options.cameras is None else tuple(options.cameras)
    return spec.adapted(cameras, options.model_image_size, options.language_layers, trained=not options.random_weights)


def check_encoder(settings: Config, spec: PolicySpec) -> None:
    """What can be known of the section `encoder` before torch is loaded. Raises FileFault."""
    from vla.errors import FileFault

    options = settings.encoder
    if unknown := [name for name in options.reuse_views if name not in spec.cameras]:
        raise FileFault(f"encoder.reuse_views names {unknown}, the policy's cameras are {', '.join(spec.cameras)}")
    if options.smoothing is not None and not Path(options.smoothing).is_file():
        raise FileFault(
            f"encoder.smoothing {options.smoothing} is missing: `launch.py bench calibrate` writes it; a relative path"
            " starts at the config's folder"
        )


def encoder_options(settings: Config) -> EncoderOptions:
    """The config's section `encoder` as the encoder takes it."""
    from vla.assemble import EncoderOptions

    options = settings.encoder
    return EncoderOptions(
        precision=options.precision,
        quantise_vision=options.quantise_vision,
        smoothing=None if options.smoothing is None else Path(options.smoothing),
        attention=options.attention,
        compile_mode=options.compile,
        cuda_graph=options.cuda_graph,
        reuse_views=tuple(options.reuse_views),
        reuse_max_age_ms=options.reuse_max_age_ms,
        reuse_threshold=options.reuse_threshold,
        cameras=None if options.cameras is None else tuple(options.cameras),
        image_size=options.model_image_size,
        language_layers=options.language_layers,
    )
