"""Batches: normalized, augmented, and in a seeded order that sees every row once."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mdc_flower.data import Examples, Part, site_data
from mdc_flower.training.batches import InputPipeline, Tensors, shuffled, steps_per_epoch
from strategies.common.errors import ConfigError
from tests.mdc_flower.examples import CPU, dataset_of


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_bytes_are_scaled_and_normalized_by_channel() -> None:
    # 51 / 255 = 0.2, 102 / 255 = 0.4, 255 / 255 = 1
    #   channel 0: (0.2 - 0.2) / 0.5 = 0,    (1 - 0.2) / 0.5 = 1.6
    #   channel 1: (0.4 - 0.5) / 0.25 = -0.4, (0 - 0.5) / 0.25 = -2
    images = torch.tensor([[[[51, 255]], [[102, 0]]]], dtype=torch.uint8)
    batch = InputPipeline(mean=(0.2, 0.5), std=(0.5, 0.25))(images, CPU)
    expected = torch.tensor([[[[0.0, 1.6]], [[-0.4, -2.0]]]])
    assert batch.dtype == torch.float32
    torch.testing.assert_close(batch, expected)


def test_bytes_without_statistics_are_only_scaled() -> None:
    images = torch.tensor([[[[0, 51, 255]]]], dtype=torch.uint8)
    torch.testing.assert_close(InputPipeline()(images, CPU), torch.tensor([[[[0.0, 0.2, 1.0]]]]))


def test_one_value_of_the_statistics_serves_all_channels() -> None:
    images = torch.tensor([[[[255]], [[0]]]], dtype=torch.uint8)
    batch = InputPipeline(mean=(0.5,), std=(0.5,))(images, CPU)
    assert batch.flatten().tolist() == [1.0, -1.0]


def test_floats_are_normalized_as_they_are() -> None:
    # Axis 1 is the channel: (10 - 8) / 2 = 1, (6 - 4) / 4 = 0.5
    inputs = torch.tensor([[10.0, 6.0]])
    assert InputPipeline(mean=(8.0, 4.0), std=(2.0, 4.0))(inputs, CPU).tolist() == [[1.0, 0.5]]


def test_floats_without_statistics_reach_the_model_unchanged() -> None:
    inputs = torch.tensor([[300.0, -5.5]])
    assert torch.equal(InputPipeline()(inputs, CPU), inputs)


@pytest.mark.parametrize("generator", [None, seeded()])
def test_tokens_reach_the_model_unchanged(generator: torch.Generator | None) -> None:
    tokens = torch.tensor([[7, 3, 40_000]])
    pipeline = InputPipeline(mean=(0.5,), std=(0.5,), augment="crop-flip")
    batch = pipeline(tokens, CPU, generator)
    assert batch.dtype == torch.int64
    assert torch.equal(batch, tokens)


def test_stored_inputs_are_left_as_they_are() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    before = images.clone()
    InputPipeline((0.5,), (0.5,), "crop-flip")(images, CPU, seeded())
    assert torch.equal(images, before)


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_layout_is_as_asked_and_the_values_are_the_same(channels_last: bool) -> None:
    images = torch.randint(0, 256, (2, 3, 4, 5), generator=seeded(), dtype=torch.uint8)
    batch = InputPipeline((0.5,), (0.5,), channels_last=channels_last)(images, CPU)
    assert batch.is_contiguous(memory_format=torch.channels_last) is channels_last
    assert batch.is_contiguous() is not channels_last
    assert torch.equal(batch, (images.float() / 255 - 0.5) / 0.5)


def test_vectors_have_no_channels_last() -> None:
    assert InputPipeline()(torch.ones(2, 3), CPU).tolist() == [[1.0] * 3] * 2


def test_a_pipeline_takes_its_statistics_from_the_data_set() -> None:
    images = Examples(np.zeros((2, 3, 4, 4), np.uint8), np.array([0, 1]))
    data = dataset_of(images, images, mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    assert InputPipeline.of(data, "flip", channels_last=False) == InputPipeline(
        (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "flip", channels_last=False
    )


# Augmentation

COUNT, HEIGHT, WIDTH = 300, 16, 8
PAD_Y, PAD_X = HEIGHT // 8, WIDTH // 8  # 2 and 1


def distinct_images() -> NDArray[np.uint8]:
    """Return images of which no pixel is 0, and no two pixels of a channel are equal.

    Image ``i`` is image 0 plus ``i % 100``, so that one in the place of another is noticed.
    """
    first = 1 + np.arange(HEIGHT * WIDTH).reshape(1, 1, HEIGHT, WIDTH)
    offsets = (np.arange(COUNT) % 100).reshape(-1, 1, 1, 1)
    return (first + offsets + np.arange(2).reshape(1, 2, 1, 1)).astype(np.uint8)


def moved(image: NDArray[Any], down: int, right: int, flipped: bool) -> NDArray[Any]:
    """Return an image flipped, then shifted, pixel by pixel, with zeros outside."""
    result = np.zeros_like(image)
    for y in range(HEIGHT):
        for x in range(WIDTH):
            from_y, from_x = y - down, x - right
            if 0 <= from_y < HEIGHT and 0 <= from_x < WIDTH:
                result[:, y, x] = image[:, from_y, WIDTH - 1 - from_x if flipped else from_x]
    return result


def augmented(kind: str, seed: int = 1) -> NDArray[Any]:
    images = torch.from_numpy(distinct_images())
    batch = InputPipeline(augment=kind)(images, CPU, seeded(seed))
    bytes_again: NDArray[np.uint8] = np.rint(batch.numpy() * 255).astype(np.uint8)
    return bytes_again


def moves_of(kind: str) -> list[tuple[int, int, bool]]:
    """Return how each image was moved; every one by at most an eighth of its size."""
    # Image i is image 0 plus a number where it is not 0, so image 0 is moved once for all.
    candidates = {
        (down, right, flipped): moved(distinct_images()[0], down, right, flipped)
        for down in range(-PAD_Y, PAD_Y + 1)
        for right in range(-PAD_X, PAD_X + 1)
        for flipped in (False, True)
    }
    found = []
    for index, image in enumerate(augmented(kind)):
        offset = np.uint8(index % 100)
        fits = [
            move
            for move, candidate in candidates.items()
            if np.array_equal(image, np.where(candidate > 0, candidate + offset, 0))
        ]
        assert len(fits) == 1, f"image {index} is no shift of itself by at most an eighth"
        found += fits
    return found


def test_crop_shifts_by_every_amount_up_to_an_eighth_with_zeros_outside() -> None:
    moves = moves_of("crop")
    assert {down for down, _, _ in moves} == {-2, -1, 0, 1, 2}
    assert {right for _, right, _ in moves} == {-1, 0, 1}
    assert not any(flipped for _, _, flipped in moves)


def test_flip_mirrors_half_of_the_images_and_shifts_none() -> None:
    moves = moves_of("flip")
    assert {(down, right) for down, right, _ in moves} == {(0, 0)}
    # 300 fair draws have a standard deviation of sqrt(300) / 2 = 8.7; four of them are 35.
    assert 115 <= sum(flipped for _, _, flipped in moves) <= 185


def test_crop_flip_does_both() -> None:
    moves = moves_of("crop-flip")
    assert len(set(moves)) == 5 * 3 * 2
    assert 115 <= sum(flipped for _, _, flipped in moves) <= 185


def test_augmentation_none_changes_nothing() -> None:
    assert np.array_equal(augmented("none"), distinct_images())


@pytest.mark.parametrize("kind", ["crop", "flip", "crop-flip"])
def test_augmentation_is_the_generators_alone(kind: str) -> None:
    before = torch.get_rng_state()
    assert np.array_equal(augmented(kind), augmented(kind))
    assert not np.array_equal(augmented(kind), augmented(kind, seed=2))
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_generator_nothing_is_augmented() -> None:
    images = torch.from_numpy(distinct_images())
    batch = InputPipeline(augment="crop-flip")(images, CPU)
    assert np.array_equal(np.rint(batch.numpy() * 255), images.numpy())


@pytest.mark.parametrize("kind", ["crop", "flip", "crop-flip"])
@pytest.mark.parametrize(
    ("inputs", "shown"),
    [
        (np.zeros((2, 1, 40, 101), np.float32), "float32[1, 40, 101]"),  # a spectrogram
        (np.zeros((2, 64), np.int64), "int64[64]"),
        (np.zeros((2, 7), np.float32), "float32[7]"),
        (np.zeros((2, 8, 8), np.uint8), "uint8[8, 8]"),
    ],
)
def test_only_images_can_be_augmented(kind: str, inputs: NDArray[Any], shown: str) -> None:
    examples = Examples(inputs, np.array([0, 1]))
    data = dataset_of(examples, examples)
    with pytest.raises(ConfigError, match="only images can be augmented") as caught:
        InputPipeline.of(data, kind)
    assert caught.value.where == "augment"
    assert caught.value.got == f"{kind} for inputs {shown}"
    assert InputPipeline.of(data, "none").augment == "none"


def test_zeros_outside_are_black_before_normalization() -> None:
    # A black pixel is (0 - 0.5) / 0.5 = -1 after it; a white one is 1.
    white = torch.full((50, 1, 8, 8), 255, dtype=torch.uint8)
    batch = InputPipeline((0.5,), (0.5,), "crop")(white, CPU, seeded())
    assert set(batch.flatten().tolist()) == {-1.0, 1.0}


# The order

SIZES = [(n, b) for n in (*range(1, 10), 31, 32, 33, 64, 65, 100) for b in (1, 2, 3, 8, 32, 99)]


@pytest.mark.parametrize(("num_examples", "batch_size"), SIZES)
def test_the_steps_of_an_epoch_are_its_batches_and_its_batches_see_a_row_once(
    num_examples: int, batch_size: int
) -> None:
    batches = list(shuffled(num_examples, batch_size, seeded()))
    rows = torch.cat(batches).tolist()
    assert steps_per_epoch(num_examples, batch_size) == len(batches)
    assert len(set(rows)) == len(rows)
    assert set(rows) <= set(range(num_examples))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    # Left out is at most the one example of a last batch beside larger ones.
    alone = num_examples > batch_size > 1 and num_examples % batch_size == 1
    assert len(rows) == num_examples - alone
    assert (len(batches[-1]) == 1) == (batch_size == 1 or num_examples == 1)


@pytest.mark.parametrize(
    ("num_examples", "batch_size", "steps"),
    # 1 example: 1. 33 = 32 + 1, the one left out: 1. 34 = 32 + 2: 2. 5 times 1: 5.
    [(1, 32, 1), (32, 32, 1), (33, 32, 1), (34, 32, 2), (5, 1, 5), (1, 1, 1), (3, 2, 1)],
)
def test_the_number_of_steps_is_exact(num_examples: int, batch_size: int, steps: int) -> None:
    assert steps_per_epoch(num_examples, batch_size) == steps


def order(generator: torch.Generator) -> list[int]:
    return [int(row) for batch in shuffled(50, 8, generator) for row in batch]


def test_the_same_seed_is_the_same_order_and_every_epoch_is_another() -> None:
    first, again, other = seeded(1), seeded(1), seeded(2)
    epochs = [order(first), order(first)]
    assert epochs == [order(again), order(again)]
    assert epochs[0] != epochs[1]
    assert order(other) not in epochs


def test_the_one_that_is_left_out_is_another_in_other_epochs() -> None:
    generator = seeded()
    left_out = {
        (set(range(5)) - set(torch.cat(list(shuffled(5, 4, generator))).tolist())).pop()
        for _ in range(60)
    }
    assert left_out == set(range(5))


# From stored examples


def test_tensors_share_the_memory_of_the_examples() -> None:
    examples = Examples(np.arange(6, dtype=np.float32).reshape(3, 2), np.array([0, 1, 0]))
    tensors = Tensors.of(examples)
    assert len(tensors) == len(tensors.inputs) == 3
    assert np.shares_memory(tensors.inputs[0:2].numpy(), examples.inputs)
    assert np.shares_memory(tensors.labels.numpy(), examples.labels)


def test_a_batch_has_the_rows_that_are_asked_for_in_that_order() -> None:
    examples = Examples(np.arange(10, dtype=np.float32)[:, None], np.arange(10))
    part = Part(examples, np.array([7, 2, 5, 9]))
    for tensors, numbers in ((Tensors.of(examples), range(10)), (Tensors.of(part), part.rows)):
        assert len(tensors) == len(tensors.inputs) == len(numbers)
        assert tensors.labels.tolist() == list(numbers)
        for index in (torch.tensor([3, 0]), slice(1, 3), slice(2, 50)):
            expected = np.array(numbers)[index if isinstance(index, slice) else index.numpy()]
            assert tensors.inputs[index].flatten().tolist() == expected.tolist()


def test_a_batch_of_an_array_in_another_order_of_memory_is_contiguous() -> None:
    images = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 4, 5, 3).transpose(0, 3, 1, 2)
    inputs = Tensors.of(Examples(images, np.array([0, 1]))).inputs
    for batch in (inputs[torch.tensor([1, 0])], inputs[0:2]):
        assert batch.is_contiguous()
    assert np.array_equal(inputs[torch.tensor([1, 0])].numpy(), images[[1, 0]])


def test_a_batch_of_read_only_memory_is_a_copy_so_that_torch_cannot_write_to_it(
    tmp_path: Path,
) -> None:
    np.save(tmp_path / "inputs.npy", np.arange(6, dtype=np.uint8).reshape(3, 2))
    mapped = np.load(tmp_path / "inputs.npy", mmap_mode="r")
    labels = np.array([0, 1, 0])
    labels.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of memory that it must not write to
        tensors = Tensors.of(Examples(mapped, labels))
        batches = [tensors.inputs[0:3], tensors.inputs[torch.arange(3)], tensors.labels]
    for batch in batches:
        batch += 1
    assert np.load(tmp_path / "inputs.npy").tolist() == [[0, 1], [2, 3], [4, 5]]
    assert labels.tolist() == [0, 1, 0]
    assert [batch.tolist() for batch in batches[:2]] == [[[1, 2], [3, 4], [5, 6]]] * 2


def own_bytes() -> int:
    """Return the memory of this process that is not that of a mapped file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise AssertionError("this kernel does not tell")


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="Linux tells, others do not")
def test_the_parts_of_mapped_images_stay_mapped(tmp_path: Path) -> None:
    # 256 MiB without content: the file takes no room on disk.
    count = 256
    shape = (count, 1, 1024, 1024)
    np.lib.format.open_memmap(tmp_path / "images.npy", "w+", np.uint8, shape).flush()
    images = np.load(tmp_path / "images.npy", mmap_mode="r")
    examples = Examples(images, np.arange(count) % 2)
    before = own_bytes()
    dataset = dataset_of(examples, examples)
    splits = [site_data(dataset, None, 0, 1, fraction) for fraction in (0.5, 0.2)]
    parts = [part for split in splits for part in (split.train, split.validation)]
    tensors = [Tensors.of(part) for part in (*parts, examples)]
    seen = sum(int(one.inputs[torch.arange(4)].sum()) for one in tensors)
    assert seen == 0
    assert own_bytes() - before < 64 * 2**20
