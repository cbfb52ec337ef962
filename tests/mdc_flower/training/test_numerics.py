"""Device, number format, threads and random state."""

import os
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from mdc_flower.common.seeded import seeded
from mdc_flower.training.numerics import (
    deterministic,
    device_name,
    number_format,
    pick_autocast_dtype,
    pick_device,
    processor,
    repeatable,
)
from strategies.common.errors import ConfigError
from tests.mdc_flower.examples import CPU

CUDA = torch.device("cuda")
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


def test_the_cpu_is_always_there() -> None:
    assert pick_device("cpu") == CPU


@pytest.mark.parametrize(("available", "kind"), [(True, "cuda"), (False, "cpu")])
def test_auto_is_a_gpu_if_there_is_one(
    monkeypatch: pytest.MonkeyPatch, available: bool, kind: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert pick_device("auto").type == kind


@pytest.mark.parametrize("name", ["cuda:99", "abacus", "", "cpu:x"])
def test_a_device_that_is_not_there_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match="no such device") as caught:
        pick_device(name)
    assert (caught.value.where, caught.value.got) == ("device", name)
    assert caught.value.expected == "auto, cpu, cuda or cuda:N"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("device", [CPU, CUDA])
@pytest.mark.parametrize(
    ("precision", "dtype"), [("none", None), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_a_precision_that_is_asked_for_is_used(
    device: torch.device, precision: str, dtype: torch.dtype | None
) -> None:
    assert pick_autocast_dtype(precision, device) is dtype


@pytest.mark.parametrize(
    ("abilities", "dtype"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ({"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": False, "amx_bf16": False}, None),
        ({"avx2": True}, None),
        ({}, None),
    ],
)
def test_auto_is_bfloat16_where_the_processor_computes_with_it(
    monkeypatch: pytest.MonkeyPatch, abilities: Mapping[str, bool], dtype: torch.dtype | None
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: abilities)
    assert pick_autocast_dtype("auto", CPU) is dtype


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, None)])
def test_auto_is_bfloat16_where_the_gpu_computes_with_it_and_does_not_emulate_it(
    monkeypatch: pytest.MonkeyPatch, native: bool, dtype: torch.dtype | None
) -> None:
    def is_bf16_supported(including_emulation: bool = True) -> bool:
        return native or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    assert pick_autocast_dtype("auto", CUDA) is dtype


@dataclass(frozen=True)
class Settings:
    """All that decides whether bits repeat."""

    threads: int
    deterministic: bool
    benchmark: bool
    tf32: bool
    algorithms: bool
    warn_only: bool
    fill: bool


def settings() -> Settings:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    return Settings(
        torch.get_num_threads(),
        cudnn.deterministic,
        cudnn.benchmark,
        cudnn.allow_tf32 or matmul.allow_tf32,
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        deterministic.fill_uninitialized_memory,
    )


REPEATABLE = Settings(3, True, False, False, True, True, True)


@pytest.mark.parametrize("benchmark", [True, False])
def test_on_a_gpu_threads_are_fixed_and_kernels_repeatable_and_after_all_is_as_before(
    monkeypatch: pytest.MonkeyPatch, benchmark: bool
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", benchmark)
    monkeypatch.setattr(deterministic, "fill_uninitialized_memory", False)
    monkeypatch.delenv(CUBLAS, raising=False)
    before = settings()
    assert before.tf32  # cuDNN's convolutions have it by default
    with repeatable(3, CUDA):
        assert settings() == REPEATABLE
        assert os.environ[CUBLAS] == ":4096:8"
        with repeatable(2, CUDA):
            assert settings() == replace(REPEATABLE, threads=2)
        assert settings() == REPEATABLE
    assert settings() == before


def test_a_workspace_of_cublas_that_is_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CUBLAS, ":16:8")
    with repeatable(1, CUDA):
        assert os.environ[CUBLAS] == ":16:8"


def test_on_a_processor_only_the_threads_are_fixed() -> None:
    before = settings()
    with repeatable(3):
        assert settings() == replace(before, threads=3)
        with repeatable(2):
            assert settings() == replace(before, threads=2)
        assert settings() == replace(before, threads=3)
    assert settings() == before


def test_number_formats_and_devices_have_names() -> None:
    names = [number_format(dtype) for dtype in (None, torch.bfloat16, torch.float16)]
    assert names == ["float32", "bfloat16", "float16"]
    assert device_name(CPU) == processor() != ""
    assert device_name(torch.device("mps")) == "mps"


def test_the_settings_are_given_back_also_after_an_error() -> None:
    before = settings()
    with pytest.raises(ArithmeticError), repeatable(before.threads + 1, CUDA):
        raise ArithmeticError
    assert settings() == before


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_a_seed_decides_what_each_global_generator_gives() -> None:
    with seeded(2**63 - 1):
        first = drawn()
    drawn()
    with seeded(2**63 - 1):
        assert drawn() == first
    with seeded(5):
        assert not set(drawn()) & set(first)


def test_each_global_generator_goes_on_after_as_if_nothing_had_been_drawn() -> None:
    with seeded(1):
        drawn()
        expected = drawn()
    with seeded(1):
        drawn()
        with seeded(2):
            drawn()
        with pytest.raises(ArithmeticError), seeded(3):
            raise ArithmeticError
        assert drawn() == expected
