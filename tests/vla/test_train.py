from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from control.messages import Frames, RobotSpec
from tests.vla import squares
from tests.vla.conftest import edit_yaml, instruction
from vla import policy, weights
from vla.assemble import load_encoder
from vla.encoder import QwenEncoder
from vla.engine import Engine
from vla.errors import TrainingFault
from vla.policy import load_head
from vla.policy_spec import HeadChoice, PolicySpec, PoolingChoice, WindowChoice, identify, load_spec, verify
from vla.preprocess import GREY
from vla.prompt import Prompter
from vla.qwen import QwenBackbone
from vla.training.begin import begin
from vla.training.checkpoint import Progress
from vla.training.learner import Collator, Learner
from vla.training.parallel import Group
from vla.training.train import Schedule, Shape, train

VIEWS, SIDE = 2, 56


SHAPE = Shape(
    squares.HORIZON, squares.PERIOD_S, head=HeadChoice(kind="regression", hidden=64, readout=squares.FACTS), queries=1
)
ROBOT = squares.robot(VIEWS, SIDE)


def run(folder: Path, **changes: object) -> tuple[dict[str, float], list[str]]:
    """Three steps on four batches, or what `changes` say."""
    lines: list[str] = []
    asked = {"steps": 3, "measure_every": 1, "minutes": None} | changes
    schedule = Schedule(**{name: asked.pop(name) for name in list(asked) if name in Schedule.__slots__})  # type: ignore[arg-type]
    options: dict[str, object] = {
        "batches": lambda seed: itertools.islice(squares.batches(seed + 1, 8, VIEWS, SIDE, acting=2), 4),
        "shape": SHAPE,
        "wordings": squares.WORDINGS,
        "log": lines.append,
    }
    errors = train(
        out_folder=folder,
        validation_batches=list(itertools.islice(squares.batches(2, 8, VIEWS, SIDE), 1)),
        robot=ROBOT,
        schedule=schedule,
        **(options | asked),  # type: ignore[arg-type]
    )
    return errors, lines


def test_training_leaves_a_whole_policy_that_encodes_and_acts(tmp_path: Path) -> None:
    errors, lines = run(tmp_path)
    assert set(errors) == {"length_cm", "facts", "chunk", "joint", "joint_mean", "cell"}
    assert sum("samples/s" in line for line in lines) == 3
    spec = verify(tmp_path)
    assert spec.provenance["steps"] == 3 and spec.fits(squares.robot(VIEWS, SIDE)) == []
    assert 0 <= spec.feature_age_ms[0] < spec.feature_age_ms[1] <= 600
    batch = next(squares.batches(3, 1, VIEWS, SIDE))
    captured = Frames(1, 1, {name: images[0] for name, images in batch.images.items()})
    features = load_encoder(tmp_path, "cpu", 1).encode(captured, instruction(batch.instructions[0]))
    assert load_head(tmp_path).act(features.tokens, batch.states[0, 0].astype(np.float64), 0.0).shape == (8, 7)
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert size < 5_000_000
    work = tmp_path.with_name(f".{tmp_path.name}.training")
    rows = json.loads((work / "curve.json").read_text())
    assert [row["step"] for row in rows] == [1, 2, 3] and rows[0]["held_out_chunk"] > 0
    assert (work / "curve.png").stat().st_size > 10_000 and any("loss curve" in line for line in lines)


@pytest.mark.parametrize("second", [SIDE, 112])
def test_the_policy_acts_as_the_learner_that_was_trained(tiny: QwenBackbone, prompter: Prompter, second: int) -> None:
    """The training path (one large batch) against the running path (encode, then act), also where the cameras are of
    two sizes and the policy makes them one.
    """
    robot = squares.robot(VIEWS, SIDE)
    cameras = robot.cameras | {"view1": (second, second)}
    spec = PolicySpec(
        name="x", backbone="backbone", geometry="tiny", width=32, cameras=cameras, state_names=robot.state_names,
        action_names=robot.action_names, horizon=8, period_s=0.1, pooling=PoolingChoice(view="attention"),
        head=HeadChoice(kind="regression"), image_size=(SIDE, SIDE),
    )  # fmt: skip
    learner = Learner(spec, tiny).eval()
    batch = next(squares.batches(3, 4, VIEWS, SIDE))
    batch.images["view1"] = next(squares.batches(4, 4, VIEWS, second)).images["view1"]
    learner.normalise_by([batch])
    with torch.inference_mode():
        inputs = Collator(spec, prompter)(batch)
        features = learner.see(inputs).features
        steps = learner.head.predict(features, inputs.states[:, 0], inputs.age_ms[:, 0])
    encoder = QwenEncoder(spec, Engine(tiny, learner.pool), prompter, learner.aggregate, "x", 1)
    for sample in range(4):
        captured = Frames(1, 1, {name: images[sample] for name, images in batch.images.items()})
        features = encoder.encode(captured, instruction(batch.instructions[sample]))
        state = batch.states[sample, 0].astype(np.float64)
        chunk = learner.head.act(features.tokens, state, float(batch.feature_age_ms[sample, 0]))
        wanted = state + (steps[sample] * learner.head.step_std + learner.head.step_mean).numpy()
        np.testing.assert_allclose(chunk, wanted, atol=1e-4)


def test_optional_cameras_are_grey_in_a_share_of_the_training_and_the_others_never(prompter: Prompter) -> None:
    robot = squares.robot(2, SIDE)
    spec = with_optional(robot, "view1")
    batch = next(squares.batches(3, 200, 2, SIDE))
    plain, masked = (Collator(spec, prompter, masks)(batch).images for masks in (None, np.random.default_rng(0)))
    plain, masked = (images.unflatten(0, (-1, 2)) for images in (plain, masked))
    assert torch.equal(plain[:, 0], masked[:, 0])
    is_grey = (masked[:, 1] == GREY).all(dim=-1).all(dim=-1)
    assert 0.05 < is_grey.float().mean() < 0.15
    assert torch.equal(plain[~is_grey, 1], masked[~is_grey, 1])


def with_optional(robot: RobotSpec, *optional: str) -> PolicySpec:
    return PolicySpec(
        name="x", backbone="backbone", geometry="tiny", width=32, cameras=robot.cameras, state_names=robot.state_names,
        action_names=robot.action_names, horizon=8, period_s=0.1, pooling=PoolingChoice(view="attention"),
        head=HeadChoice(kind="regression"), optional_cameras=optional,
    )  # fmt: skip


def test_cells_and_offsets_come_from_the_pixel_place(tiny: QwenBackbone, prompter: Prompter) -> None:
    spec = tiny_learner_spec()
    learner = Learner(spec, tiny)
    batch = next(squares.batches(3, 2, 1, 112))
    assert batch.truth is not None
    batch.truth.uv["view0"][:, 0] = [[0.3, 0.9], [0.999, 0.0]]
    sighting = Collator(spec, prompter)(batch).sighting
    assert sighting is not None
    cell, offset = learner.cells(sighting)
    assert cell.tolist() == [[[3 * 4 + 1]], [[3]]]
    np.testing.assert_allclose(offset[0, 0, 0], [0.3 * 4 - 1.5, 0.9 * 4 - 3.5], atol=1e-5)


def tiny_learner_spec() -> PolicySpec:
    robot = squares.robot(1, 112)
    return PolicySpec(
        name="x", backbone="backbone", geometry="tiny", width=32, cameras=robot.cameras, state_names=robot.state_names,
        action_names=robot.action_names, horizon=8, period_s=0.1, pooling=PoolingChoice(view="attention"),
        head=HeadChoice(kind="regression"),
    )  # fmt: skip


def test_the_loss_falls_on_a_batch_that_is_seen_again_and_again(tmp_path: Path) -> None:
    batch = next(squares.batches(1, 8, VIEWS, SIDE))
    _, lines = run(tmp_path, batches=lambda seed: [batch] * 100, steps=100, measure_every=10, seed=3)
    chunk = [float(line.split("chunk ")[1].split()[0]) for line in lines if "min step" in line]
    assert chunk[-1] < 0.7 * chunk[0]


def test_training_goes_on_from_a_policy_with_its_normalisation(tmp_path: Path) -> None:
    run(tmp_path / "first")
    run(tmp_path / "second", start_from=tmp_path / "first", steps=1, learning_rate=1e-6)
    first, second = (load_head(tmp_path / name) for name in ("first", "second"))
    torch.testing.assert_close(first.state_mean, second.state_mean)  # type: ignore[attr-defined]
    torch.testing.assert_close(first.out.weight, second.out.weight, atol=1e-3, rtol=0)  # type: ignore[attr-defined]
    assert first.policy_id != second.policy_id
    assert load_spec(tmp_path / "second").provenance["steps"] == 1


def test_training_goes_on_with_another_readout_and_says_from_what(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    run(first)
    other = replace(SHAPE, head=SHAPE.head.model_copy(update={"readout": ("y_m", "x_m")}))
    run(second, start_from=first, new_readout=True, shape=other, steps=1, learning_rate=1e-6)
    before, after = load_head(first), load_head(second)
    torch.testing.assert_close(before.value_mean.flip(0), after.value_mean)  # type: ignore[attr-defined]
    torch.testing.assert_close(before.out.weight, after.out.weight, atol=1e-3, rtol=0)  # type: ignore[attr-defined]
    spec = load_spec(second)
    assert spec.head.readout == ("y_m", "x_m")
    assert (spec.provenance["begun_from"], spec.provenance["begun_steps"]) == (identify(first), 3)


def test_going_on_from_a_policy_that_leaves_early_trains_and_keeps_the_layers_it_runs(tmp_path: Path) -> None:
    run(tmp_path / "first", steps=1)
    edit_yaml(tmp_path / "first", language_layers=1)
    run(tmp_path / "second", start_from=tmp_path / "first", steps=1)
    depths = [
        weights.describe(tmp_path / name / "backbone").text_config.num_hidden_layers for name in ("first", "second")
    ]
    assert depths[0] > 1 and depths[1] == 1 and load_spec(tmp_path / "second").language_layers == 1


def test_a_policy_from_nothing_for_cameras_of_two_sizes_is_refused_by_name_and_size(tmp_path: Path) -> None:
    robot = replace(ROBOT, cameras={"view0": (56, 56), "view1": (112, 84)})
    with pytest.raises(TrainingFault, match=r"one image size for all cameras, got view0 56x56, view1 112x84 \(height"):
        begin(robot, SHAPE, squares.WORDINGS, 0, None, new_readout=False)


def test_going_on_from_a_policy_of_another_horizon_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(ValueError, match="it has horizon 8 at 0.1 s, asked for 4 at 0.1 s"):
        run(tmp_path / "on", shape=Shape(4, 0.1), start_from=tmp_path)


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("nan"), float("inf")])
def test_a_training_that_would_never_end_is_refused(tmp_path: Path, minutes: float) -> None:
    with pytest.raises(TrainingFault, match="minutes of training must be a finite number above 0, got"):
        run(tmp_path, steps=None, minutes=minutes)


def test_no_step_is_no_training(tmp_path: Path) -> None:
    with pytest.raises(TrainingFault, match="steps of training must be at least 1, got 0"):
        run(tmp_path, steps=0)


def test_a_policy_is_replaced_only_when_that_is_asked_for(tmp_path: Path) -> None:
    run(tmp_path / "policy", steps=1)
    before = identify(tmp_path / "policy")
    with pytest.raises(TrainingFault, match="holds a policy already: choose another folder"):
        run(tmp_path / "policy", steps=1, seed=1)
    assert identify(tmp_path / "policy") == before
    run(tmp_path / "policy", steps=1, seed=1, overwrite=True)
    assert identify(tmp_path / "policy") != before
    assert sorted(path.name for path in tmp_path.iterdir()) == [".policy.training", "policy"]


def test_a_folder_with_other_files_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(TrainingFault, match="holds 'thesis.txt', which is no part of a policy and would be lost"):
        run(tmp_path, overwrite=True)


def test_a_folder_that_cannot_be_written_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(TrainingFault, match=r"file/policy cannot be written \(Not a directory\): likely a wrong path"):
        run(tmp_path / "file" / "policy")


def test_a_checkpoint_that_fails_leaves_the_last_one_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "policy"
    written: list[str] = []
    save = policy.save

    def full_disk(*arguments: object) -> str:
        if written:
            raise OSError("no space left")
        written.append(save(*arguments))  # type: ignore[arg-type]
        return written[0]

    monkeypatch.setattr(policy, "save", full_disk)
    with pytest.raises(TrainingFault, match=r"cannot be written \(no space left\): likely a full disk"):
        run(folder, save_every_minutes=0.0)
    verify(folder)
    assert [identify(folder)] == written


def test_batches_with_nan_end_training_with_the_reason(tmp_path: Path) -> None:
    batch = next(squares.batches(1, 8, VIEWS, SIDE))
    spoiled = next(squares.batches(2, 8, VIEWS, SIDE))
    spoiled.targets[0, 0, 0, 0] = np.nan
    with pytest.raises(TrainingFault, match="holds NaN or infinity in its targets: the data is damaged"):
        run(tmp_path, batches=lambda seed: [batch] * 40 + [spoiled], steps=41)


def test_a_resumed_training_is_where_it_was(tmp_path: Path) -> None:
    """Interrupted after two steps and resumed, against one that ran through on the same batches."""
    made = list(itertools.islice(squares.batches(1, 8, VIEWS, SIDE), 4))
    run(tmp_path / "whole", batches=lambda seed: made, steps=4)

    def until_interrupted(seed: int) -> Iterator[squares.SquaresBatch]:
        yield from made[:2]
        raise KeyboardInterrupt

    def normalised_by_all(seed: int) -> Iterator[squares.SquaresBatch]:
        return iter(made)

    seen: list[int] = []
    counted = Progress.met

    def met(self: Progress, *ages: float) -> None:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(1)
        counted(self, *ages)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "met", met)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", batches=normalised_by_all, steps=4, save_every_minutes=0.0)
    assert load_spec(tmp_path / "cut").provenance["steps"] == 2
    _, lines = run(tmp_path / "cut", batches=lambda seed: made[2:], steps=4, resume=True)
    assert any("going on at step 2" in line for line in lines)
    whole, cut = (load_head(tmp_path / name) for name in ("whole", "cut"))
    torch.testing.assert_close(cut.out.weight, whole.out.weight, atol=1e-6, rtol=0)  # type: ignore[attr-defined]
    assert load_spec(tmp_path / "cut").provenance["samples"] == 32


def test_a_state_of_another_training_is_not_gone_on_with(tmp_path: Path) -> None:
    made_of = {"tasks": "touch", "max_age_ms": 1000.0}
    run(tmp_path / "policy", made_of=made_of)
    run(tmp_path / "other", steps=1)
    with pytest.raises(TrainingFault, match="holds the state of another training: seed was 0, is now 7"):
        run(tmp_path / "policy", seed=7, resume=True, made_of=made_of)
    for asked, said in (
        ({"wordings": ("lift it", "drop it")}, "tokenizer was [0-9a-f]{12}, is now [0-9a-f]{12}"),
        ({"shape": replace(SHAPE, optional_cameras=("view1",))}, "optional_cameras was , is now view1"),
        ({"shape": replace(SHAPE, window=WindowChoice(samples=5, rate_hz=100.0))}, "is now 5 states at 100 Hz"),
        (
            {"shape": replace(SHAPE, head=HeadChoice(kind="flow-matching", hidden=64))},
            "head was regression, is now flow",
        ),
        ({"start_from": tmp_path / "other"}, f"from was None, is now {identify(tmp_path / 'other')}"),
        ({"made_of": {"tasks": "touch", "max_age_ms": 500.0}}, "max_age_ms was 1000.0, is now 500.0;"),
        ({"made_of": {"tasks": "pick", "max_age_ms": 1000.0}}, "tasks was touch, is now pick;"),
    ):
        with pytest.raises(TrainingFault, match=said):
            run(tmp_path / "policy", resume=True, **({"made_of": made_of} | asked))
    (tmp_path / ".policy.training" / "state" / "state.safetensors").write_bytes(b"cut")
    with pytest.raises(TrainingFault, match="not a whole training state"):
        run(tmp_path / "policy", resume=True)


def test_a_state_that_an_older_version_saved_is_not_gone_on_with(tmp_path: Path) -> None:
    run(tmp_path / "policy")
    file = tmp_path / ".policy.training" / "state" / "state.json"
    state = json.loads(file.read_text())
    del state["options"]["tokenizer"]
    file.write_text(json.dumps(state))
    with pytest.raises(TrainingFault, match="tokenizer was not noted by the version that saved it, is now .* anew"):
        run(tmp_path / "policy", resume=True)


def test_all_processes_go_by_the_clock_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By this process' own clock the training would be over at once; the first one's is slower."""
    asked: list[float] = []

    def agree(self: Group, value: float) -> float:
        if value in (0.0, 1.0):  # whether it is over
            return float(len(asked) > 3)
        asked.append(value)  # minutes
        return 0.0 if len(asked) <= 3 else 1.0

    monkeypatch.setattr(Group, "agree", agree)
    run(tmp_path / "policy", steps=None, minutes=1e-6)
    provenance = load_spec(tmp_path / "policy").provenance
    assert (provenance["steps"], provenance["minutes"]) == (3, 1.0)


def test_a_policy_says_what_it_learned_from_and_the_ages_that_all_processes_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Group, "widest", lambda self, span: (span[0], span[1] + 1000.0))  # another process' were older
    made_of = {"tasks": "touch,pick", "max_age_ms": 600.0}
    run(tmp_path / "first", made_of=made_of)
    told = load_spec(tmp_path / "first")
    assert {name: told.provenance[name] for name in made_of} == made_of and told.provenance["seed"] == 0
    assert {"torch", "transformers", "python"} <= told.provenance.keys()
    assert 0.0 <= told.feature_age_ms[0] < 300.0 and 1300.0 < told.feature_age_ms[1] <= 1600.0
    run(tmp_path / "second", made_of={"tasks": "bin"}, start_from=tmp_path / "first")
    told = load_spec(tmp_path / "second")
    assert (told.provenance["begun_tasks"], told.provenance["tasks"]) == ("touch,pick", "bin")
    assert "begun_max_age_ms" not in told.provenance and "begun_seed" not in told.provenance


def test_training_ends_when_the_held_out_error_no_longer_falls(tmp_path: Path) -> None:
    batch = next(squares.batches(1, 8, VIEWS, SIDE))
    _, lines = run(tmp_path, batches=lambda seed: [batch] * 60, steps=60, patience=3, learning_rate=1e-9)
    assert 4 <= sum("min step" in line for line in lines) < 30


def test_without_truth_only_the_action_loss_is_left(tmp_path: Path) -> None:
    blind = [replace(batch, truth=None) for batch in itertools.islice(squares.batches(1, 8, VIEWS, SIDE), 3)]
    errors, lines = run(tmp_path, batches=lambda seed: blind)
    told = [line for line in lines if "min step" in line]
    assert told and all("cell" not in line.split("|")[0] and "chunk" in line for line in told)
    assert errors["chunk"] > 0


@pytest.mark.parametrize("kind", ["regression", "flow-matching"])
def test_each_head_is_trained_end_to_end(tmp_path: Path, kind: str) -> None:
    shape = Shape(squares.HORIZON, squares.PERIOD_S, head=HeadChoice(kind=kind, hidden=32), queries=1)  # type: ignore[arg-type]
    run(tmp_path, shape=shape)
    assert load_spec(tmp_path).head.kind == kind
    chunk = load_head(tmp_path).act(np.zeros((VIEWS, 128), np.float32), np.zeros(7), 100.0)
    assert chunk.shape == (8, 7)
