"""Models on the wire: which tensors travel, how they are written, and the checks on what came.

Files are safetensors: nothing from a peer is ever unpickled. With `wire.dtype: int8` a floating-point tensor
of two axes or more is two entries: its q in I8 under its own name, and its scales in F16 (quantisation.py)
under that name and SCALES.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import blake3
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gossipseg.algos.base import Weights
from gossipseg.errors import LocalError, PeerRefused
from gossipseg.learn.exchange.admission import Admission, Examination, Unfit, check_table
from gossipseg.learn.exchange.quantisation import (
    NeverWritten,
    NotRepresentable,
    blocks_in,
    check_quantised,
    dequantised,
    quantised,
)
from gossipseg.learn.protocol import WireSchema
from gossipseg.store import (
    SCALES,
    BadSafetensors,
    TensorInfo,
    atomic_write,
    by_addressee,
    is_scales,
    read_safetensors_header,
    schema_difference,
)

IsShared = Callable[[str], bool]
FORMAT_VERSION = "1"
INT8 = "int8"

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
    """Name → (safetensors dtype, shape) of the entries that this site sends and expects.

    A floating-point tensor may also come as F32, where its values do not fit float16 or bfloat16.
    """
    schema: WireSchema = {}
    for name, tensor in shared(state, is_shared).items():
        if is_quantised(tensor, wire_dtype):
            schema[name + SCALES] = (CODES[torch.float16], (blocks_in(tensor.numel()),))
            schema[name] = (CODES[torch.int8], tuple(tensor.shape))
        else:
            schema[name] = (CODES[_wire_dtype(tensor, wire_dtype)], tuple(tensor.shape))
    return schema


def export_wire(
    path: Path, state: Weights, is_shared: IsShared, wire_dtype: str, metadata: Mapping[str, object]
) -> str:
    """Write the shared tensors to `path`, whole or not at all. Returns the file's blake3 (hex).

    Metadata is {"gossipseg": "1"} and `metadata` as strings (None becomes "").
    Raises LocalError when a tensor is not finite or beyond int8, DiskFull when the file does not fit.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in shared(state, is_shared).items():
        if not finite(tensor):
            raise LocalError(
                f"{name}: this site's own model holds values that are not finite; it is not sent."
            )
        try:
            tensors |= entries_of(name, tensor, wire_dtype)
        except NotRepresentable as e:
            raise LocalError(f"{name}: this site's own model is not sent: {e}.") from None
    texts = {key: "" if value is None else str(value) for key, value in metadata.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as e:
        raise LocalError(f"{path.parent}: cannot be made: {e.strerror}. Check the state directory.") from e
    content = save(tensors, {"gossipseg": FORMAT_VERSION, **texts})
    atomic_write(path, content)
    return str(blake3.blake3(content).hexdigest())


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
    `unreadable`, `schema_mismatch` (the detail names the first differing tensor), `bad_format` (what no site
    writes), `not_finite`, and with `admission` also `norm_exploded`, `layer_changed_too_much` and
    `unrelated`.
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
    names = sorted(name for name in tensors if not is_scales(name))
    own = {name: reference[name] for name in names}
    examination = admission.against(own) if admission is not None else None
    try:
        with safe_open(path, framework="pt") as file:
            taken = {}
            for name in names:
                tensor = read_tensor(file, prefix + name, quantised=name + SCALES in tensors)
                taken[name] = _taken_in(name, tensor, reference[name], examination)
        if examination is not None:
            examination.accept()
        return taken
    except Unfit as e:
        raise PeerRefused(frm, e.reason, e.detail) from None
    except NeverWritten as e:
        raise PeerRefused(frm, "bad_format", str(e)) from None
    except (SafetensorError, OSError, ValueError) as e:
        raise PeerRefused(frm, "unreadable", str(e)) from e


def read_tensor(file: Any, name: str, *, quantised: bool) -> Tensor:
    """A tensor of a wire file that safe_open has opened; a quantised one in float32.

    Raises NeverWritten, SafetensorError.
    """
    values: Tensor = file.get_tensor(name)
    if not quantised:
        return values
    scales = file.get_tensor(name + SCALES)
    check_quantised(name, values, scales)
    return dequantised(values, scales)


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


def is_quantised(tensor: Tensor, wire_dtype: str) -> bool:
    """Whether the tensor travels as two entries, values and scales."""
    return wire_dtype == INT8 and tensor.is_floating_point() and tensor.dim() >= 2


def entries_of(name: str, tensor: Tensor, wire_dtype: str) -> dict[str, Tensor]:
    """The entries of a wire file for one tensor, on the CPU. Raises NotRepresentable."""
    if not is_quantised(tensor, wire_dtype):
        return {name: to_wire(tensor, wire_dtype)}
    values, scales = quantised(tensor)
    return {name: values.cpu().contiguous(), name + SCALES: scales.cpu()}


def _wire_dtype(tensor: Tensor, wire_dtype: str) -> torch.dtype:
    if not tensor.is_floating_point():
        return tensor.dtype
    return _DTYPES[wire_dtype] if tensor.dim() >= 2 else torch.float32


def to_wire(tensor: Tensor, wire_dtype: str) -> Tensor:
    """As it travels unless it is quantised: contiguous, on the CPU, in the wire dtype.

    In float32 where that cannot hold it.
    """
    small = tensor.to(_wire_dtype(tensor, wire_dtype))
    if not finite(small):
        small = tensor.to(torch.float32)
    return small.cpu().contiguous()


def _taken_in(name: str, tensor: Tensor, reference: Tensor, examination: Examination | None) -> Tensor:
    wide = tensor.to(reference.dtype)
    if not finite(wide):
        raise Unfit("not_finite", f"{name} holds values that are not finite")
    check_table(name, tensor, reference)
    if examination is not None:
        examination.take(name, wide)
    return wide
