"""Inputs on the device, or sent there: the same bits."""

import gc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mdc_flower.data import Examples, Part
from mdc_flower.training import transfer
from mdc_flower.training.batches import Inputs, Tensors
from mdc_flower.training.job import Pass
from mdc_flower.training.transfer import FromHost, Resident, arriving, source_of
from tests.gpu import DEVICES
from tests.mdc_flower.examples import CPU
from tests.mdc_flower.training.device_rounds import digest, evaluated, job, numbers, trained

Room = Callable[[int], None]


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Room:
    """Return a function that sets the free memory of every device, in bytes."""

    def set_room(num_bytes: int) -> None:
        monkeypatch.setattr(transfer, "free_bytes", lambda device: num_bytes)

    return set_room


def stored(array: np.ndarray, rows: list[int] | None = None) -> Inputs:
    examples = Examples(array, np.zeros(len(array), np.int64))
    return Tensors.of(examples if rows is None else Part(examples, np.array(rows))).inputs


@pytest.mark.parametrize("device", DEVICES)
def test_a_round_has_the_same_bits_whether_the_inputs_are_on_the_device_or_sent_there(
    device: torch.device, room: Room
) -> None:
    found = []
    for num_bytes in (0, 10**9):
        room(num_bytes)
        own = job()
        model, result = trained(own, device)
        is_resident = isinstance(source_of(own.splits["train"].inputs, device), Resident)
        assert is_resident == (num_bytes > 0)
        evaluations = [evaluated(own, split, device) for split in ("validation", "test")]
        found.append((digest(model), numbers(result), [repr(one) for one in evaluations]))
    assert found[0] == found[1]


@pytest.mark.parametrize("device", DEVICES)
def test_processes_that_share_a_batch_get_their_rows_of_it(
    device: torch.device, room: Room
) -> None:
    for num_bytes in (0, 10**9):
        room(num_bytes)
        own = job(count=32)
        whole, *parts = (
            list(own.batches(Pass("train", device, seeded(), True, rank=rank, ranks=ranks)))
            for rank, ranks in ((0, 1), (0, 2), (1, 2))
        )
        assert len(whole) == 2
        for (inputs, labels), *shares in zip(whole, *parts, strict=True):
            for rank, (share, of_share) in enumerate(shares):
                assert torch.equal(share, inputs[rank::2])
                assert torch.equal(of_share, labels[rank::2])


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_an_eighth_of_the_free_memory_is_for_the_inputs(room: Room) -> None:
    inputs = stored(np.zeros((4, 25), np.uint8))
    room(799)
    assert isinstance(source_of(inputs, CPU), FromHost)
    room(800)
    assert isinstance(source_of(inputs, CPU), Resident)


def test_on_a_cpu_inputs_stay_in_their_array() -> None:
    assert transfer.free_bytes(CPU) == 0
    inputs = stored(np.arange(6, dtype=np.uint8))
    source = source_of(inputs, CPU)
    assert np.shares_memory(source.inputs(source.sent(slice(1, 3))).numpy(), inputs.array)  # type: ignore[attr-defined]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int64])
@pytest.mark.parametrize("rows", [None, [5, 3, 4, 0]])
def test_a_mapped_array_is_copied_in_pieces_and_gives_the_rows_that_are_asked_for(
    device: torch.device,
    dtype: type,
    rows: list[int] | None,
    room: Room,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    np.save(tmp_path / "inputs.npy", np.arange(21, dtype=dtype).reshape(7, 3))
    mapped = np.load(tmp_path / "inputs.npy", mmap_mode="r")
    inputs = stored(mapped, rows)
    room(10**6)
    monkeypatch.setattr(transfer, "CHUNK_BYTES", 2 * mapped[0].nbytes)  # so the last is smaller
    source = source_of(inputs, device)
    assert isinstance(source, Resident)
    for index in (torch.tensor([3, 0]), slice(1, 3), slice(2, 50), slice(0, 9, 2)):
        found = source.inputs(source.sent(index).to(device))
        assert found.device.type == device.type
        expected = inputs[index]
        assert found.dtype == expected.dtype
        assert torch.equal(found.cpu(), expected)


def test_sites_of_one_process_share_the_copy_and_it_goes_with_the_array(room: Room) -> None:
    room(10**6)
    array = np.arange(30, dtype=np.uint8).reshape(10, 3)
    sources = [source_of(stored(array, rows), CPU) for rows in ([0, 1], [2, 3])]
    first, second = (one.tensor for one in sources if isinstance(one, Resident))
    assert first is second
    kept = dict(transfer._resident)
    assert first in [one for one in kept.values() if one is first]
    del array, sources, first, second, kept
    gc.collect()
    assert not any(tensor.shape == (10, 3) for tensor in transfer._resident.values())


@pytest.mark.parametrize("device", DEVICES)
def test_every_batch_arrives_once_and_in_its_order(device: torch.device) -> None:
    for count in (0, 1, 2, 5):
        batches = [
            (number, (torch.full((3,), number), torch.tensor([7]))) for number in range(count)
        ]
        arrived = list(arriving(iter(batches), device))
        assert [number for number, _ in arrived] == list(range(count))
        for number, (first, second) in arrived:
            assert first.device.type == second.device.type == device.type
            assert (first.tolist(), second.tolist()) == ([number] * 3, [7])
