"""Where the arithmetic runs, and in which precision: device, autocast, memory format, copies."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from gossipseg.errors import ConfigError, LocalError
from gossipseg.learn.params import DeviceParams

Net = TypeVar("Net", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class Compute:
    """The hardware and precision that a trainer uses."""

    device: torch.device
    autocast_dtype: torch.dtype | None = None
    """None: float32 throughout."""
    channels_last: bool = False

    @property
    def amp(self) -> str:
        """As shown to users: off, bf16 or fp16."""
        return {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(self.autocast_dtype, "off")  # type: ignore[arg-type]

    @property
    def name(self) -> str:
        """As shown to users: cpu, or cuda:0 with the card's name."""
        if self.device.type != "cuda":
            return str(self.device)
        return f"{self.device} ({torch.cuda.get_device_name(self.device)})"

    def autocast(self) -> AbstractContextManager[object]:
        """The context of a forward pass; losses are computed outside it, in float32."""
        return torch.autocast(
            self.device.type, dtype=self.autocast_dtype, enabled=self.autocast_dtype is not None
        )

    def memory_format(self, spatial_dims: int) -> torch.memory_format:
        """Channels last on CUDA, where convolutions want it."""
        if not self.channels_last:
            return torch.contiguous_format
        return torch.channels_last if spatial_dims == 2 else torch.channels_last_3d

    def place_model(self, model: Net, spatial_dims: int) -> Net:
        """The model on the device, in the memory format of its convolutions."""
        model = model.to(self.device)
        if self.channels_last:
            # Module.to(memory_format=…) refuses models that mix 4-D and 5-D weights: only matching ones move.
            fmt = self.memory_format(spatial_dims)
            for parameter in model.parameters():
                if parameter.dim() == spatial_dims + 2:
                    parameter.data = parameter.data.contiguous(memory_format=fmt)
        return model

    def stage(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The batch in pinned memory where that makes the copy to the device asynchronous."""
        if self.device.type != "cuda":
            return dict(batch)
        return {k: v.pin_memory() for k, v in batch.items()}

    def place(self, tensor: Tensor) -> Tensor:
        """A batch tensor on the device: (B, C, *spatial)."""
        tensor = tensor.to(self.device, non_blocking=True)
        if self.channels_last and tensor.dim() in (4, 5):
            tensor = tensor.contiguous(memory_format=self.memory_format(tensor.dim() - 2))
        return tensor


def choose_compute(params: DeviceParams) -> Compute:
    """The device and precision of site.yaml's `device` section, as this machine has them.

    Raises ConfigError for values that make no sense, LocalError for a device that is not there.
    """
    device = _device(params.device)
    if params.amp == "fp16" and device.type != "cuda":
        raise ConfigError(
            "fp16 needs CUDA",
            key="device.amp",
            value="fp16",
            remedy="Use `auto`, `bf16` or `off` on the CPU.",
        )
    return Compute(
        device, _autocast_dtype(params.amp, device), params.channels_last and device.type == "cuda"
    )


def _autocast_dtype(amp: str, device: torch.device) -> torch.dtype | None:
    if amp == "auto":
        if device.type != "cuda":
            return None
        able = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if able else torch.float16
    return {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(
            "no such device", key="device.device", value=name, remedy="Use `auto`, `cpu`, `cuda` or `cuda:1`."
        )
    if device.type == "cuda":
        index, count = device.index or 0, torch.cuda.device_count()
        if index >= count:
            raise LocalError(
                f"device.device = {name!r}: this machine shows {count} CUDA device(s). "
                "Check the driver (nvidia-smi) and CUDA_VISIBLE_DEVICES, or set device.device: cpu."
            )
        device = torch.device("cuda", index)
    return device
