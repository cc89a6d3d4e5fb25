"""The choice of device and precision."""

from __future__ import annotations

import pytest
import torch

from gossipseg.errors import ConfigError, LocalError
from gossipseg.learn.engine.precision import choose_compute
from gossipseg.learn.params import DeviceParams


def test_the_cpu_computes_in_float32_unless_told_otherwise() -> None:
    compute = choose_compute(DeviceParams(device="cpu"))
    assert (compute.amp, compute.name, compute.channels_last) == ("off", "cpu", False)
    assert choose_compute(DeviceParams(device="cpu", amp="bf16")).autocast_dtype is torch.bfloat16


def test_fp16_on_the_cpu_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"device\.amp = 'fp16'"):
        choose_compute(DeviceParams(device="cpu", amp="fp16"))


@pytest.mark.parametrize("name", ("gpu", "cuda:x", "meta", ""))
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"device\.device"):
        choose_compute(DeviceParams(device=name))


def test_a_device_that_is_not_there_says_so() -> None:
    with pytest.raises(LocalError, match="CUDA device"):
        choose_compute(DeviceParams(device="cuda:99"))
