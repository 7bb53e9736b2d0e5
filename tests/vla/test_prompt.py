from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from vla.errors import FileFault, PromptError
from vla.prompt import Prompter


def test_the_instruction_comes_before_the_view_and_the_view_before_the_image(prompter: Prompter) -> None:
    row = prompter.row("pick up the red block", "wrist", (56, 56))
    text = prompter._tokenizer.decode(row.token_ids)
    assert text == (
        "<|im_start|>user\npick up the red block\nview: wrist\n<|vision_start|>"
        "<|image_pad|><|image_pad|><|image_pad|><|image_pad|>"
    )


def test_image_positions_hold_time_still_and_count_rows_and_columns(prompter: Prompter) -> None:
    row = prompter.row("go", "a", (56, 84))
    start = row.image_start
    prompt = prompter.prompt("go", {"a": (56, 84)})
    assert prompt.position_ids[:, 0, start - 1].tolist() == [start - 1] * 3
    assert (prompt.position_ids[:, 0, start : start + 6] - start).tolist() == [
        [0] * 6,
        [0, 0, 0, 1, 1, 1],
        [0, 1, 2, 0, 1, 2],
    ]


@pytest.mark.parametrize("multiple", [32, 128])
def test_rows_are_padded_to_a_multiple_and_their_text_counted(prompter: Prompter, multiple: int) -> None:
    names = ("a", "a longer name")
    prompt = prompter.prompt("go", dict.fromkeys(names, (56, 56)), multiple)
    assert prompt.text_tokens == tuple(prompter.row("go", name, (56, 56)).image_start for name in names)
    assert prompt.token_ids.shape == (2, multiple)


def test_views_of_one_size_form_one_group_in_their_order(prompter: Prompter) -> None:
    prompt = prompter.prompt("go", {"a": (56, 56), "long camera name": (28, 28), "c": (56, 56)})
    assert [(group.size, group.rows) for group in prompt.groups] == [((56, 56), (0, 2)), ((28, 28), (1,))]
    image = prompter.image_token_id
    for group in prompt.groups:
        assert prompt.token_ids.flatten()[group.image_index].unique().tolist() == [image]
    assert sum(len(group.image_index) for group in prompt.groups) == int((prompt.token_ids == image).sum())


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|im_end|>"])
def test_control_tokens_in_the_operators_text_are_refused(prompter: Prompter, token: str) -> None:
    with pytest.raises(PromptError, match="control tokens.*remove them, use plain words"):
        prompter.row(f"pick {token} up", "front", (56, 56))


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_instruction_is_refused(prompter: Prompter, text: str) -> None:
    with pytest.raises(PromptError, match="the instruction is empty"):
        prompter.row(text, "front", (56, 56))


def test_an_instruction_too_long_for_the_model_is_refused(prompter: Prompter) -> None:
    with pytest.raises(PromptError, match="at most 4096 fit"):
        prompter.row("pick " * 5000, "front", (56, 56))


@pytest.mark.parametrize("letter", ["x", "ж", "左", "🦾"])
def test_any_thousand_characters_encode(prompter: Prompter, letter: str) -> None:
    assert len(prompter.row(letter * 1000, "front", (28, 28)).token_ids) > 0


def test_any_text_encodes_and_comes_back(prompter: Prompter) -> None:
    text = "лево, 左, hé? 42 <not a token>"
    row = prompter.row(text, "front", (28, 28))
    assert text in prompter._tokenizer.decode(row.token_ids)


def test_the_saved_tokenizer_loads_without_remote_code_and_encodes_the_same(prompter: Prompter, tmp_path: Path) -> None:
    prompter.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    assert "auto_map" not in (tmp_path / "tokenizer_config.json").read_text()
    loaded = Prompter.load(tmp_path)
    for text in ("pick up the red block", "put it elsewhere, now!"):
        assert (
            loaded.row(text, "a", (28, 28)).token_ids.tolist() == prompter.row(text, "a", (28, 28)).token_ids.tolist()
        )
    assert len(AutoTokenizer.from_pretrained(tmp_path)) <= 512


def test_a_missing_tokenizer_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileFault, match="tokenizer.json is missing.*incomplete copy or download"):
        Prompter.load(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_truncated_tokenizer_file_is_named(prompter: Prompter, tmp_path: Path, name: str) -> None:
    prompter.save(tmp_path)
    (tmp_path / name).write_text((tmp_path / name).read_text()[:100])
    with pytest.raises(FileFault, match=r"tokenizer.json and .*: not a readable tokenizer \(.*interrupted copy"):
        Prompter.load(tmp_path)
