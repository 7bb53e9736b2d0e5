from __future__ import annotations

import pytest
import torch

from tests.vla.conftest import CPU
from vla.attention import Attention, obstacle
from vla.geometry import geometry_config
from vla.tables import image_tables

BF16 = torch.bfloat16


def test_sdpa_runs_everywhere() -> None:
    assert obstacle("sdpa", CPU, torch.float32) == ""


@pytest.mark.parametrize("backend", ["varlen", "flash_attention_2"])
def test_what_cannot_run_here_is_refused_with_the_reason(backend: str) -> None:
    assert obstacle(backend, CPU, BF16) == f"attention '{backend}' needs a CUDA GPU, the device is 'cpu': use 'sdpa'"  # type: ignore[arg-type]
    assert "needs 16-bit states, the precision gives torch.float32" in obstacle(
        backend, torch.device("cuda"), torch.float32  # type: ignore[arg-type]
    )  # fmt: skip


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "needs the module flash_attn, which is not installed" in obstacle(
        "flash_attention_2", torch.device("cuda"), BF16
    )


@pytest.mark.parametrize("size", [(112, 112), (364, 644)])
def test_ends_count_every_window_of_every_view(size: tuple[int, int]) -> None:
    tables = image_tables(size, geometry_config("tiny").vision_config, CPU)
    patches = len(tables.cos)
    ends = Attention("varlen").ends(3, tables.window_ends)
    assert ends is not None and ends.dtype == torch.int32 and ends[0] == 0 and ends[-1] == 3 * patches
    lengths = ends.diff().tolist()
    one = [length for start, end, length in tables.windows for _ in range((end - start) // length)]
    assert lengths == one * 3
    whole = Attention("varlen").ends(3, tables.whole_ends)
    assert whole is not None and whole.tolist() == [0, patches, 2 * patches, 3 * patches]
    assert Attention("sdpa").ends(3, tables.window_ends) is None


def test_packed_windows_equal_the_runs_of_sdpa(monkeypatch: pytest.MonkeyPatch) -> None:
    """The packed kernels need a GPU; a plain loop over the ends stands in for them, so the packing itself is tested."""

    def loop(q, k, v, ends, longest, causal, scale):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
        assert longest == ends.diff().max()
        out = []
        for start, end in zip(ends, ends[1:], strict=False):
            parts = (part[start:end].transpose(0, 1)[None] for part in (q, k, v))
            out.append(torch.nn.functional.scaled_dot_product_attention(*parts, is_causal=causal, scale=scale)[0])
        return torch.cat([part.transpose(0, 1) for part in out])

    monkeypatch.setattr("vla.attention._packed", lambda backend: loop)
    tables = image_tables((364, 644), geometry_config("tiny").vision_config, CPU)
    packed, plain = Attention("varlen"), Attention("sdpa")
    query, key, value = (torch.randn(2, len(tables.cos), 2, 8) for _ in range(3))
    ends = packed.ends(2, tables.window_ends)
    torch.testing.assert_close(
        packed.windows(query, key, value, tables.windows, ends, 0.3),
        plain.windows(query, key, value, tables.windows, None, 0.3),
    )
    query, key, value = torch.randn(2, 9, 4, 8), torch.randn(2, 9, 2, 8), torch.randn(2, 9, 2, 8)
    ends = packed.ends(2, torch.tensor([0, 9], dtype=torch.int32))
    torch.testing.assert_close(packed.rows(query, key, value, ends, 0.3), plain.rows(query, key, value, None, 0.3))
