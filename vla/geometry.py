"""Model sizes by name, as configurations of Qwen2.5-VL: what random weights are made of.

"3b" is Qwen/Qwen2.5-VL-3B-Instruct as published, "mid" half as wide and a third as deep, with its
proportions (40 % of the work of an encode in the vision tower), "embedded" what is trained here, "tiny" for tests.
"""

from __future__ import annotations

from typing import Any

from transformers import Qwen2_5_VLConfig

from vla.tokenizer import CONTROL_TOKENS, VOCABULARY

# Vision and language sizes. The rotary base of the small ones is low because their images are 4 x 4 tokens: with 1e6,
# neighbouring rows and columns would get all but the same rotation.
_SMALL = {"vocab_size": VOCABULARY, "max_position_embeddings": 8192, "tie_word_embeddings": True, "bos_token_id": 0}
GEOMETRIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "3b": (
        {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
        | {
            "out_hidden_size": 2048,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2,
        },
        {"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36}
        | {"num_attention_heads": 16, "num_key_value_heads": 2, "max_position_embeddings": 128000, "rms_norm_eps": 1e-6}
        | {"rope_theta": 1e6, "mrope_section": [16, 24, 24], "tie_word_embeddings": True},
    ),
    "mid": (
        {"depth": 12, "hidden_size": 640, "intermediate_size": 1712, "num_heads": 8}
        | {
            "out_hidden_size": 1024,
            "window_size": 112,
            "fullatt_block_indexes": [2, 5, 8, 11],
            "tokens_per_second": 2,
        },
        {"hidden_size": 1024, "intermediate_size": 5504, "num_hidden_layers": 12, "rms_norm_eps": 1e-6}
        | {
            "num_attention_heads": 8,
            "num_key_value_heads": 1,
            "rope_theta": 1e6,
            "mrope_section": [16, 24, 24],
            **_SMALL,
        },
    ),
    "embedded": (
        {"depth": 3, "hidden_size": 96, "intermediate_size": 256, "num_heads": 3}
        | {"out_hidden_size": 128, "window_size": 112, "fullatt_block_indexes": [2], "tokens_per_second": 2},
        {
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 3,
            "rms_norm_eps": 1e-6,
            "rope_theta": 100.0,
        }
        | {"num_attention_heads": 4, "num_key_value_heads": 2, "mrope_section": [4, 6, 6], **_SMALL},
    ),
    "tiny": (
        {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2}
        | {"out_hidden_size": 32, "window_size": 112, "fullatt_block_indexes": [1], "tokens_per_second": 2},
        {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "rms_norm_eps": 1e-6, "rope_theta": 100.0}
        | {"num_attention_heads": 4, "num_key_value_heads": 2, "mrope_section": [1, 1, 2], **_SMALL},
    ),
}


def geometry_config(name: str) -> Any:
    """The model configuration of one of `GEOMETRIES`."""
    if name not in GEOMETRIES:
        raise ValueError(f"unknown geometry '{name}', known: {', '.join(GEOMETRIES)}")
    vision, text = GEOMETRIES[name]
    text = dict(text)
    rope = {"rope_type": "default", "rope_theta": text.pop("rope_theta"), "mrope_section": text.pop("mrope_section")}
    tied = text.pop("tie_word_embeddings")
    tokens: dict[str, Any] = {}
    if name != "3b":
        text |= {"eos_token_id": CONTROL_TOKENS.index("<|im_end|>")}
        tokens = {
            f"{key}_token_id": CONTROL_TOKENS.index(f"<|{token}|>")
            for key, token in (
                ("image", "image_pad"),
                ("video", "video_pad"),
                ("vision_start", "vision_start"),
                ("vision_end", "vision_end"),
            )
        }
    return Qwen2_5_VLConfig(
        vision_config={"patch_size": 14, "in_channels": 3, **vision},
        text_config={"rope_parameters": rope, **text},
        tie_word_embeddings=tied,
        architectures=["Qwen2_5_VLForConditionalGeneration"],
        **tokens,
    )
