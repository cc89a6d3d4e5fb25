"""Pretrained weights from a local file: read safely, and only if their checksum is the contract's."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from gossipseg.errors import ConfigError


def read_weights(path: str, sha256: str, key: str) -> dict[str, Tensor]:
    """The named tensors of a safetensors or torch file, on the CPU.

    `sha256`: its hexadecimal checksum, the same at every site, because the sites must start alike. `key`: the
    setting that names the file, for errors. Raises ConfigError where the file is missing, is another one, or
    is unreadable.
    """
    file = Path(path).expanduser()
    try:
        with file.open("rb") as f:
            found = hashlib.file_digest(f, "sha256").hexdigest()
    except OSError as e:
        raise ConfigError(
            f"the weights cannot be read: {e.strerror}",
            key=key,
            value=str(file),
            remedy="Put the file there (nothing is downloaded), or remove the setting.",
        ) from e
    if not hmac.compare_digest(found, sha256.strip().lower()):
        raise ConfigError(
            f"the file's sha256 is {found}",
            file=file,
            key=f"{key}_sha256",
            value=sha256,
            remedy="All sites need the very same file; get that one, or correct the checksum at all sites.",
        )
    try:
        return _tensors(file)
    except Exception as e:  # both readers raise whatever the damage leads to
        raise ConfigError(
            f"is no file of weights: {type(e).__name__}",
            file=file,
            key=key,
            remedy="Use safetensors, or a torch state dict of plain tensors.",
        ) from e


def _tensors(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        return dict(safetensors.torch.load_file(file))
    loaded = torch.load(file, map_location="cpu", weights_only=True)
    for wrapper in ("state_dict", "model"):
        loaded = loaded[wrapper] if isinstance(loaded.get(wrapper), dict) else loaded
    return {name: t for name, t in loaded.items() if isinstance(t, Tensor)}
