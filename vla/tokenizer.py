"""The embedded model's tokenizer: byte-level BPE of about 512 pieces, with the names of Qwen's control tokens.

Built from the wordings a policy is trained on and common words of commands, so that an instruction stays short. Any
other text still encodes, byte by byte in the worst case. Saved in the published layout, it loads with `AutoTokenizer`.
"""

from __future__ import annotations

from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase, Qwen2Tokenizer

VOCABULARY = 512
CONTROL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
COMMAND_WORDS = (
    "user view front left right top side wrist overhead camera hand gripper arm"
    " put place move pick take grasp lift push pull drop open close turn point bring stack reach touch hold stop go"
    " the a an it this that one and then to in into on onto under over above below behind between from of with near"
    " next up down forward back slowly gently please now again away"
    " red green blue yellow orange purple white black grey pink brown block cube ball cup bowl box bin tray table plate"
    " small large big nearest other middle corner"
)


def build_tokenizer(wordings: Iterable[str]) -> PreTrainedTokenizerBase:
    """Trained on the prompts these wordings make; the same wordings give the same tokenizer."""
    prompts = [f"user\n{wording}\nview: front\n" for wording in wordings]
    lines = prompts * 4 + [f" {word}" for word in COMMAND_WORDS.split()] * 2 + COMMAND_WORDS.split()
    return Qwen2Tokenizer().train_new_from_iterator(
        [lines], vocab_size=VOCABULARY, new_special_tokens=list(CONTROL_TOKENS), show_progress=False
    )
