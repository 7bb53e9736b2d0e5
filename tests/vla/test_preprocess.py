from __future__ import annotations

import numpy as np
import pytest
import torch

from vla.preprocess import patches, published_patches, resize
from vla.sizes import model_size, patch_grid


def reference_patches(image: np.ndarray) -> np.ndarray:
    """The published layout, written as the loops its description reads like."""
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    std = np.array([0.26862954, 0.26130258, 0.27577711])
    pixels = (image / 255.0 - mean) / std
    rows = []
    for block_row in range(image.shape[0] // 28):
        for block_column in range(image.shape[1] // 28):
            for row in (0, 1):
                for column in (0, 1):
                    top, left = block_row * 28 + row * 14, block_column * 28 + column * 14
                    patch = pixels[top : top + 14, left : left + 14]
                    rows.append(np.concatenate([np.tile(patch[:, :, c].ravel(), 2) for c in range(3)]))
    return np.array(rows)


@pytest.mark.parametrize("size", [(28, 28), (56, 84), (140, 112)])
def test_patches_are_in_the_published_order(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    got = published_patches(patches(torch.from_numpy(image[None]))).numpy()
    assert got.shape == ((size[0] // 14) * (size[1] // 14), 1176)
    np.testing.assert_allclose(got, reference_patches(image), atol=1e-5)


def test_patches_equal_the_image_processor_of_transformers() -> None:
    processor = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    image = np.random.default_rng(1).integers(0, 256, (84, 112, 3), dtype=np.uint8)
    published = processor.Qwen2VLImageProcessorPil()(image, return_tensors="np")
    got = published_patches(patches(torch.from_numpy(image[None]))).numpy()
    assert published["image_grid_thw"].tolist() == [[1, *patch_grid(84, 112)]]
    np.testing.assert_allclose(got, published["pixel_values"], atol=1e-5)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((112, 112), (112, 112)), ((360, 640), (364, 644)), ((10, 41), (28, 28)), ((43, 71), (56, 84))],
)
def test_sides_are_rounded_to_the_nearest_multiple_of_28(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert model_size(*size) == expected


def test_an_image_of_the_right_size_is_not_resized() -> None:
    images = torch.zeros(1, 56, 56, 3, dtype=torch.uint8)
    assert resize(images, 56, 56) is images


def test_a_resized_plain_image_keeps_its_colour() -> None:
    images = torch.full((2, 360, 640, 3), 77, dtype=torch.uint8)
    resized = resize(images, 364, 644)
    assert resized.shape == (2, 364, 644, 3)
    assert resized.unique().tolist() == [77]


def test_a_side_that_is_no_multiple_of_28_is_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 28 pixels, got 30x56"):
        patches(torch.zeros(1, 30, 56, 3, dtype=torch.uint8))
