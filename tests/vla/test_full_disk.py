"""A disk that is full in the middle of a training: said in a sentence, and what was saved before stays whole."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vla.test_parts import toy
from tests.vla.test_train import run
from vla.errors import TrainingFault
from vla.policy_spec import identify, load_spec, verify
from vla.prompt import Prompter
from vla.training import checkpoint
from vla.training import train as train_module
from vla.training.features import FeatureSet
from vla.training.parts import TrainedParts, save_beside
from vla.training.place import write_text


@contextlib.contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file of this process may grow beyond so many bytes: the kernel refuses the rest, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("module", "saves", "place"),
    [(checkpoint, "save_state", ".state.new"), (train_module, "save_policy", ".policy.new")],
)
def test_a_full_disk_ends_training_with_a_sentence_and_the_same_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: object, saves: str, place: str
) -> None:
    save, saved = getattr(module, saves), []

    def into_what_is_left(*arguments: object) -> object:
        saved.append(saves)
        with room_for(50_000) if len(saved) == 2 else contextlib.nullcontext():
            return save(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, saves, into_what_is_left)
        with pytest.raises(
            TrainingFault, match=rf"{place} cannot be written \(.*File too large.*the same command goes on"
        ):
            run(tmp_path / "policy", save_every_minutes=0.0)
    verify(tmp_path / "policy")
    assert load_spec(tmp_path / "policy").provenance["steps"] == 1
    assert not [path.name for path in tmp_path.rglob(".*.new")]
    _, lines = run(tmp_path / "policy", resume=True)
    assert any(f"going on at step {1 if saves == 'save_state' else 2}" in line for line in lines)
    assert load_spec(tmp_path / "policy").provenance["steps"] == 3


def test_a_head_that_does_not_fit_on_the_disk_leaves_the_policy_as_it_was(tmp_path: Path, policy_folder: Path) -> None:
    parts, before = TrainedParts(load_spec(policy_folder), trains_pooling=False), identify(policy_folder)
    with (
        room_for(2_000),
        pytest.raises(TrainingFault, match=r".policy.new cannot be written \(.*File too large.*likely a full disk"),
    ):
        save_beside(policy_folder, policy_folder, parts)
    assert identify(policy_folder) == before and not list(tmp_path.glob(".*"))


def test_features_and_notes_that_do_not_fit_leave_the_ones_before(tmp_path: Path) -> None:
    features, notes = tmp_path / "a.safetensors", tmp_path / "done.json"
    toy(1, 4).save(features)
    write_text(notes, "{}")
    with room_for(100):
        with pytest.raises(TrainingFault, match=r"a.safetensors cannot be written \(.*File too large"):
            toy(1, 400).save(features)
        with pytest.raises(TrainingFault, match=r"done.json.* cannot be written \(File too large"):
            write_text(notes, "x" * 9000)
    assert len(FeatureSet.load(features)) == 4 and notes.read_text() == "{}"


def test_a_tokenizer_that_does_not_fit_is_an_error_of_the_disk(tmp_path: Path, prompter: Prompter) -> None:
    with room_for(1_000), pytest.raises(OSError, match="File too large"):
        prompter.save(tmp_path)


def test_a_folder_that_cannot_take_its_place_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "state").mkdir()
    rename = Path.rename

    def full(path: Path, target: Path) -> Path:
        if path.name == ".state.new":
            raise OSError(28, "No space left on device", str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", full)
    with (
        pytest.raises(TrainingFault, match=r".state.new cannot be written \(No space left on device\)"),
        checkpoint.replacing(tmp_path / "state") as new,
    ):
        new.mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
