"""What policy.yaml says of how a policy came to be, besides what whoever trained it on says of the data."""

from __future__ import annotations

import platform
from collections.abc import Mapping

import torch
import transformers

from vla.policy_spec import PolicySpec

BEGUN = "begun"  # what the names begin with that tell of the policy a training went on from
_TOLD = ("practice_steps", "steps", "samples", "minutes", "tasks", "recordings", "episodes", "frames")


def versions() -> dict[str, str]:
    """Of what trains here."""
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def begun_from(policy_id: str, spec: PolicySpec) -> dict[str, str | int | float]:
    """The policy that is gone on from: which, and what it had behind it."""
    had = {f"{BEGUN}_{name}": value for name, value in spec.provenance.items() if name in _TOLD}
    return {f"{BEGUN}_from": policy_id} | had


def begun_in(provenance: Mapping[str, str | int | float]) -> dict[str, str | int | float]:
    """Of all that is told, what `begun_from` told."""
    return {name: value for name, value in provenance.items() if name.startswith(f"{BEGUN}_")}


def rounded(ages_ms: tuple[float, float]) -> tuple[float, float]:
    """A range of feature ages as policy.yaml has it; (0, 0) where none was met."""
    youngest, oldest = ages_ms
    return (round(youngest, 1), round(oldest, 1)) if youngest <= oldest else (0.0, 0.0)
