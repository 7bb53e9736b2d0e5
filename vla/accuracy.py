"""How far a precision moves features, layers and actions from the plain model's, on frames that a robot really saw.

The gate: `compare` runs two encoders of one policy on the same captures and judges the difference by limits. Which one
is the reference is the caller's choice: bf16, or float32 where the policy runs in it. Features and actions decide;
the layers say where a difference begins.

Letters: F captures, V views, Q feature tokens of a view, D width, A actions.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from rich.table import Table
from rich.text import Text

from control.captures import Captures
from control.head import ActionHead
from vla.encoder import QwenEncoder
from vla.errors import CaptureFault, NonFiniteFeatures
from vla.head import HoldHead, standing_window
from vla.qwen import QwenBackbone

FEATURE_AGE_MS = 300.0  # told to the head, the same for both: the middle of what features have in a run


@dataclass(frozen=True, slots=True)
class Limits:
    """What a precision may change; the actions' in their own units."""

    min_cosine: float
    max_relative_error: float
    max_action_difference: float


@dataclass(frozen=True, slots=True)
class Difference:
    """Between two sets of vectors of one kind: a view's features, or the tokens after a layer."""

    name: str
    cosine: float
    relative_error: float  # norm of the difference over the norm of the reference


@dataclass(frozen=True, slots=True)
class ActionDifference:
    """Between the targets that the head gives for both features at the same state."""

    maximum: float
    mean: float
    worst: str  # the action of the maximum


@dataclass(frozen=True, slots=True)
class Accuracy:
    """What was found. NaN stands for features that are not finite, and fails."""

    reference: str
    candidate: str
    captures: int
    limits: Limits
    views: tuple[Difference, ...]  # of each camera's worst capture
    layers: tuple[Difference, ...]  # in the order of computing, means over tokens and captures
    action: ActionDifference | None  # None: the policy's head does not look at features

    @property
    def diverges_at(self) -> str | None:
        """The first layer whose cosine falls below the limit."""
        return next((layer.name for layer in self.layers if not layer.cosine >= self.limits.min_cosine), None)

    @property
    def problems(self) -> list[str]:
        """Every limit that is not held, in words."""
        limits, found = self.limits, []
        for view in self.views:
            if not view.cosine >= limits.min_cosine:
                found.append(f"view '{view.name}': cosine {view.cosine:.4f} is below {limits.min_cosine}")
            if not view.relative_error <= limits.max_relative_error:
                found.append(
                    f"view '{view.name}': relative error {view.relative_error:.4f} is above {limits.max_relative_error}"
                )
        if self.action is not None and not self.action.maximum <= limits.max_action_difference:
            found.append(
                f"action '{self.action.worst}': differs by {self.action.maximum:.4f}, more than"
                f" {limits.max_action_difference}"
            )
        return found

    @property
    def passed(self) -> bool:
        return not self.problems

    def rows(self) -> list[tuple[str, str, str, bool]]:
        """What, cosine, error and whether it is within the limits: views, action, and the worst layer of each part."""
        limits, rows = self.limits, []
        for view in self.views:
            good = view.cosine >= limits.min_cosine and view.relative_error <= limits.max_relative_error
            rows.append((f"view {view.name}", f"{view.cosine:.5f}", f"{view.relative_error:.4f}", good))
        if self.action is not None:
            good = self.action.maximum <= limits.max_action_difference
            error = f"{self.action.maximum:.4f} (mean {self.action.mean:.4f})"
            rows.append((f"action {self.action.worst}", "", error, good))
        for part in ("visual", "language"):
            layers = [layer for layer in self.layers if layer.name.startswith(part)]
            if layers:
                worst = min(layers, key=lambda layer: layer.cosine if layer.cosine == layer.cosine else -2.0)
                row = f"worst layer, {worst.name}", f"{worst.cosine:.5f}", f"{worst.relative_error:.4f}"
                rows.append((*row, worst.cosine >= limits.min_cosine))
        return rows

    def verdict(self) -> str:
        """One sentence, or one for each limit that is not held."""
        if self.passed:
            note = "" if self.action else "; actions were not judged, the policy's head does not look at features"
            return f"{self.candidate} passes against {self.reference} on {self.captures} captures{note}"
        where = f"; layers fall below the cosine limit from {self.diverges_at} on" if self.diverges_at else ""
        return f"{self.candidate} fails against {self.reference}: " + "; ".join(self.problems) + where

    def as_json(self) -> dict[str, Any]:
        """Everything, as JSON has it: what is not finite becomes null."""
        found = asdict(self) | {"passed": self.passed, "problems": self.problems, "diverges_at": self.diverges_at}
        return _finite(found)


@torch.inference_mode()
def compare(
    reference: QwenEncoder,
    candidate: QwenEncoder,
    captures: Captures,
    head: ActionHead,
    limits: Limits,
    names: tuple[str, str] = ("reference", "candidate"),
    show: Callable[[int], None] = lambda done: None,
) -> Accuracy:
    """Judges `candidate` by `reference`. Both must run plainly: in a compiled or captured graph no layer is seen.

    `show` gets the number of captures done. Raises NonFiniteFeatures if the reference itself is not finite.
    """
    if reference.policy_id != candidate.policy_id:
        raise ValueError(
            f"both encoders must be of one policy, got '{reference.policy_id}' and '{candidate.policy_id}'"
        )
    judged = None if isinstance(head, HoldHead) else head
    if judged is not None and captures.states.shape[1] != len(judged.state_names):
        raise CaptureFault(
            f"the captures hold {captures.states.shape[1]} state values, the policy's head expects"
            f" {len(judged.state_names)} ({', '.join(judged.state_names)}): captures of another robot"
        )
    views, layers, actions = [], [], []
    for index in range(len(captures)):
        frames, text = captures.frames(index), captures.instructions[index]
        with _layers(reference.backbone) as expected_layers:
            expected = reference.pooled(frames, text)
        with _layers(candidate.backbone) as got_layers:
            got = candidate.pooled(frames, text)
        if not torch.isfinite(expected).all():
            raise NonFiniteFeatures(f"the reference '{names[0]}' is NaN or infinite for capture {index + 1}")
        views.append(_apart(expected.flatten(1), got.flatten(1)))
        layers.append(_layers_apart(expected_layers, got_layers))
        if judged is not None:
            state = captures.states[index]
            still = standing_window(judged, state)
            expected_chunk, chunk = (
                judged.act(encoder.aggregated(pooled), state, FEATURE_AGE_MS, still)
                for encoder, pooled in ((reference, expected), (candidate, got))
            )
            actions.append(np.abs(chunk - expected_chunk))
        show(index + 1)
    cosines, errors = (torch.stack(part) for part in zip(*views, strict=True))  # (F, V)
    worst = zip(candidate.cameras, cosines.amin(dim=0).tolist(), errors.amax(dim=0).tolist(), strict=True)
    return Accuracy(
        *names,
        captures=len(captures),
        limits=limits,
        views=tuple(Difference(*view) for view in worst),
        layers=tuple(
            Difference(name, *torch.stack([found[name] for found in layers]).mean(dim=0).tolist()) for name in layers[0]
        ),
        action=_action_difference(np.stack(actions), judged.action_names) if judged is not None else None,
    )


def _action_difference(differences: np.ndarray, names: tuple[str, ...]) -> ActionDifference:
    """From (F, H, A) absolute differences."""
    largest = differences.reshape(-1, len(names)).max(axis=0)  # NaN wins
    return ActionDifference(float(largest.max()), float(differences.mean()), names[int(largest.argmax())])


def _apart(expected: torch.Tensor, got: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(N,) cosines and relative errors of (N, D) rows, on the CPU."""
    expected, got = expected.double(), got.double()
    cosine = torch.cosine_similarity(expected, got, dim=-1)
    error = (got - expected).norm(dim=-1) / expected.norm(dim=-1).clamp(min=1e-12)
    return cosine.cpu(), error.cpu()


Seen = dict[str, list[torch.Tensor]]


@contextmanager
def _layers(backbone: QwenBackbone):
    """Fills a map with what comes out of every layer while the backbone encodes once."""
    visual, language = backbone.visual, backbone.language
    seen: Seen = {}

    def every(name: str) -> Callable[..., None]:  # once for each image size
        return lambda module, inputs, output: seen.setdefault(name, []).append(output)

    def last(name: str) -> Callable[..., None]:  # of a new instruction the text comes first, then the image tokens
        return lambda module, inputs: seen.update({name: [inputs[0]]})

    hooks = [block.register_forward_hook(every(f"visual.blocks.{i}")) for i, block in enumerate(visual.blocks)]
    hooks.append(visual.merger.register_forward_hook(every("visual.merger")))
    after = [*(block.norm1 for block in language.blocks[1:]), language.norm]  # each reads what the layer before wrote
    hooks += [norm.register_forward_pre_hook(last(f"language.blocks.{i}")) for i, norm in enumerate(after)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        raise ValueError("no layer was seen: the encoder runs a compiled or captured graph; load it without")


def _layers_apart(expected: Seen, got: Seen) -> dict[str, torch.Tensor]:
    """(2,) mean cosine and relative error over the tokens of each layer that both have, in the order of computing."""
    found = {}
    for name, parts in expected.items():
        pairs = list(zip(parts, got.get(name, []), strict=False))
        if pairs and all(one.shape == other.shape for one, other in pairs):
            apart = [_apart(one.flatten(0, -2), other.flatten(0, -2)) for one, other in pairs]
            found[name] = torch.stack([torch.cat(part).mean() for part in zip(*apart, strict=True)])
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def table(accuracy: Accuracy) -> Table:
    """The rows for a terminal."""
    drawn = Table(title=f"{accuracy.candidate} against {accuracy.reference}, {accuracy.captures} captures")
    for heading in ("", "cosine", "error", ""):
        drawn.add_column(heading, justify="right" if heading else "left")
    for name, cosine, error, good in accuracy.rows():
        drawn.add_row(Text(name), cosine, error, "" if good else "FAIL", style=None if good else "red")
    return drawn
