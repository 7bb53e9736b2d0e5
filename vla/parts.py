"""Encoder and head of a config's policy, both in this process, for a robot that is known by its spec alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from control.errors import MismatchError
from control.messages import RobotSpec
from vla.commands import adapted, check_encoder, encoder_options
from vla.policy_spec import verify

if TYPE_CHECKING:
    from control.config import Config
    from control.head import ActionHead
    from vla.encoder import QwenEncoder


def load_parts(settings: Config, robot: RobotSpec) -> tuple[QwenEncoder, ActionHead]:
    """Loaded and warmed up.

    Raises MismatchError, before anything is loaded, where policy and robot do not fit; FileFault and DeviceFault as a
    run does.
    """
    options = settings.encoder
    folder = Path(options.policy)
    spec = adapted(settings, verify(folder, options.random_weights))
    check_encoder(settings, spec)
    if problems := spec.fits(robot):
        raise MismatchError(
            f"policy {folder} does not fit the recorded robot '{robot.name}': {'; '.join(problems)};"
            " replay it with a policy of that robot"
        )
    import torch

    from vla.assemble import load_encoder
    from vla.policy import load_head

    torch.set_num_threads(options.threads)
    head = load_head(folder, options.random_weights)
    encoder = load_encoder(folder, options.device, 1, options.random_weights, encoder_options(settings))
    encoder.warm_up()
    return encoder, head
