"""Models on the wire: which tensors travel, how they are written, and the checks on what came.

Files are safetensors: nothing from a peer is ever unpickled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import blake3
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gossipseg.algos.base import Weights
from gossipseg.errors import LocalError, PeerRefused
from gossipseg.learn.exchange.admission import Admission, Examination, Unfit
from gossipseg.learn.protocol import WireSchema
from gossipseg.store import (
    BadSafetensors,
    TensorInfo,
    atomic_write,
    by_addressee,
    read_safetensors_header,
    schema_difference,
)

IsShared = Callable[[str], bool]
FORMAT_VERSION = "1"

_DTYPES: dict[str, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}
CODES: dict[torch.dtype, str] = {
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def shared(state: Weights, is_shared: IsShared) -> dict[str, Tensor]:
    """The tensors of a state dict that travel."""
    return {name: tensor.detach() for name, tensor in state.items() if is_shared(name)}


def wire_schema(state: Weights, is_shared: IsShared, wire_dtype: str) -> WireSchema:
    """Name → (safetensors dtype, shape) of what this site sends and expects.

    A floating-point tensor may also come as F32, where its values do not fit the wire dtype.
    """
    return {
        name: (CODES[_wire_dtype(tensor, wire_dtype)], tuple(tensor.shape))
        for name, tensor in shared(state, is_shared).items()
    }


def export_wire(
    path: Path, state: Weights, is_shared: IsShared, wire_dtype: str, metadata: Mapping[str, object]
) -> None:
    """Write the shared tensors to `path`, whole or not at all.

    Metadata is {"gossipseg": "1"} and `metadata` as strings (None becomes "").
    Raises LocalError when a tensor is not finite, DiskFull when the file does not fit.
    """
    tensors = {}
    for name, tensor in shared(state, is_shared).items():
        if not finite(tensor):
            raise LocalError(
                f"{name}: this site's own model holds values that are not finite; it is not sent."
            )
        tensors[name] = to_wire(tensor, wire_dtype)
    texts = {key: "" if value is None else str(value) for key, value in metadata.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as e:
        raise LocalError(f"{path.parent}: cannot be made: {e.strerror}. Check the state directory.") from e
    atomic_write(path, save(tensors, {"gossipseg": FORMAT_VERSION, **texts}))


def load_incoming(
    path: Path,
    reference: Weights,
    is_shared: IsShared,
    wire_dtype: str,
    frm: str,
    admission: Admission | None = None,
) -> dict[str, Tensor]:
    """Another site's shared tensors from its wire file: checked, on the CPU, in the reference's dtypes.

    `reference`: this site's own state dict. Raises PeerRefused(frm, reason, detail) with reason
    `unreadable`, `schema_mismatch` (the detail names the first differing tensor), `not_finite`, and with
    `admission` also `norm_exploded`, `layer_changed_too_much` and `unrelated`.
    """
    try:
        header = read_safetensors_header(path)
    except (BadSafetensors, OSError) as e:
        raise PeerRefused(frm, "unreadable", str(e)) from e
    schema = wire_schema(reference, is_shared, wire_dtype)
    return _load(path, header, reference, schema, frm, admission=admission)


def load_common(
    path: Path,
    site: str,
    reference: Weights,
    is_shared: IsShared,
    wire_dtype: str,
    admission: Admission | None = None,
) -> dict[str, Tensor] | None:
    """The tensors of a global model that are for this site: checked and typed as load_incoming() does.

    A site without tensors `site:name` of its own takes the plain ones; None when there are none either.
    Raises PeerRefused.
    """
    try:
        header = read_safetensors_header(path)
    except (BadSafetensors, OSError) as e:
        raise PeerRefused("coordinator", "unreadable", str(e)) from e
    parts = by_addressee(header)
    part = site if site in parts else ""
    if part not in parts:
        return None
    schema = wire_schema(reference, is_shared, wire_dtype)
    prefix = f"{part}:" if part else ""
    return _load(path, parts[part], reference, schema, "coordinator", prefix=prefix, admission=admission)


def _load(
    path: Path,
    tensors: Mapping[str, TensorInfo],
    reference: Weights,
    schema: WireSchema,
    frm: str,
    prefix: str = "",
    admission: Admission | None = None,
) -> dict[str, Tensor]:
    """The named tensors of a file, where each stands under its name behind the prefix."""
    difference = schema_difference(tensors, schema)
    if difference:
        raise PeerRefused(frm, "schema_mismatch", difference)
    own = {name: reference[name] for name in tensors}
    examination = admission.against(own) if admission is not None else None
    try:
        with safe_open(path, framework="pt") as file:
            taken = {
                name: _taken_in(name, file.get_tensor(prefix + name), reference[name], examination)
                for name in sorted(tensors)
            }
        if examination is not None:
            examination.accept()
        return taken
    except Unfit as e:
        raise PeerRefused(frm, e.reason, e.detail) from None
    except (SafetensorError, OSError, ValueError) as e:
        raise PeerRefused(frm, "unreadable", str(e)) from e


def content_hash(state: Weights, is_shared: IsShared) -> str:
    """blake3 (hex) over names, dtypes, shapes and bytes of the shared tensors, by name."""
    digest = blake3.blake3()
    for name, tensor in sorted(shared(state, is_shared).items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return str(digest.hexdigest())


def all_finite(state: Weights) -> bool:
    """Whether no floating-point tensor holds NaN or infinity."""
    return all(finite(tensor) for tensor in state.values())


def finite(tensor: Tensor) -> bool:
    """Whether a floating-point tensor holds neither NaN nor infinity; others always are."""
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _wire_dtype(tensor: Tensor, wire_dtype: str) -> torch.dtype:
    if not tensor.is_floating_point():
        return tensor.dtype
    return _DTYPES[wire_dtype] if tensor.dim() >= 2 else torch.float32


def to_wire(tensor: Tensor, wire_dtype: str) -> Tensor:
    """As it travels: contiguous, on the CPU, in the wire dtype or, where that cannot hold it, in float32."""
    small = tensor.to(_wire_dtype(tensor, wire_dtype))
    if not finite(small):
        small = tensor.to(torch.float32)
    return small.cpu().contiguous()


def _taken_in(name: str, tensor: Tensor, reference: Tensor, examination: Examination | None) -> Tensor:
    wide = tensor.to(reference.dtype)
    if not finite(wide):
        raise Unfit("not_finite", f"{name} holds values that are not finite")
    if examination is not None:
        examination.take(name, wide)
    return wide
