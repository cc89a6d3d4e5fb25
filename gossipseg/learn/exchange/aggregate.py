"""The coordinator's work: the updates of a round, checked, and combined to the next global model.

At no time is a whole model in memory, however many sites there are.
"""

from __future__ import annotations

import errno
import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

import torch
from torch import Tensor

from gossipseg.algos.base import Algorithm
from gossipseg.errors import DiskFull, LocalError
from gossipseg.learn import protocol
from gossipseg.learn.exchange.admission import Examination, Unfit
from gossipseg.learn.exchange.quantisation import (
    BLOCK_VALUES,
    NeverWritten,
    NotRepresentable,
    blocks_in,
    check_quantised,
    dequantised,
)
from gossipseg.learn.exchange.rest import SENT_IN, sent_in
from gossipseg.learn.exchange.wire_format import CODES, FORMAT_VERSION, INT8, entries_of, finite
from gossipseg.learn.params import MAX_CLAIMED_COUNT
from gossipseg.store import (
    SCALES,
    BadSafetensors,
    SafetensorsHeader,
    atomic_write,
    is_scales,
    read_safetensors,
    schema_difference,
)

OnTensor = Callable[[], None]
"""Called before each tensor that is read; what it raises ends the work, and leaves no file behind."""

Examine = Callable[[str], Examination | None]
"""The examination of a site's update by values; None: no more than finite ones are asked for."""

_DTYPES = {code: dtype for dtype, code in CODES.items()}


class UpdateOnDisk:
    """algos.base.Update over a wire file. Made by `open`, which checks it."""

    def __init__(
        self, file: protocol.UpdateFile, header: SafetensorsHeader, on_tensor: OnTensor = lambda: None
    ) -> None:
        self.site, self.cases = file.site, file.cases
        self.hash = file.hash
        self.names = sorted(name for name in header.tensors if not is_scales(name))
        self._path, self._header, self._on_tensor = Path(file.path), header, on_tensor

    def tensor(self, name: str) -> Tensor:
        """Floating-point tensors in float32, or wider if they came so."""
        shape = self.shape(name)
        return self.part(name, 0, math.prod(shape)).reshape(shape)

    def shape(self, name: str) -> tuple[int, ...]:
        """As the header says."""
        return tuple(self._header.tensors[name].shape)

    def part(self, name: str, begin: int, end: int) -> Tensor:
        """The values `begin` … `end` of the flattened tensor."""
        self._on_tensor()
        found = self._stored(name, begin, end)
        if name + SCALES in self._header.tensors:
            scales = self._stored(name + SCALES, begin // BLOCK_VALUES, blocks_in(end))
            check_quantised(name, found, scales)
            return dequantised(found, scales, begin)
        floating = found.is_floating_point()
        return found.to(torch.promote_types(found.dtype, torch.float32)) if floating else found

    def _stored(self, name: str, begin: int, end: int) -> Tensor:
        """The values `begin` … `end` of an entry, as they lie in the file."""
        dtype = _DTYPES[self._header.tensors[name].dtype]
        with self._path.open("rb") as f:
            f.seek(self._header.offsets[name] + begin * dtype.itemsize)
            raw = bytearray(f.read((end - begin) * dtype.itemsize))
        if len(raw) != (end - begin) * dtype.itemsize:
            raise ValueError(f"{name}: the file ends within it")
        return torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)


def open_updates(
    files: Iterable[protocol.UpdateFile],
    schema: protocol.WireSchema,
    on_tensor: OnTensor = lambda: None,
    examine: Examine = lambda site: None,
) -> tuple[list[UpdateOnDisk], dict[str, str], str]:
    """The updates that may be combined, and site → reason for those that may not, the last one in words."""
    good, refused, detail = [], {}, ""
    for file in files:
        reason, text, header = _examine(file, schema)
        if header is not None:
            update = UpdateOnDisk(file, header, on_tensor)
            reason, text = _bad_values(update, examine(file.site))
            if not reason:
                good.append(update)
                continue
        refused[file.site], detail = reason, f"{file.site}: {text}"
    return good, refused, detail


def _bad_values(update: UpdateOnDisk, examination: Examination | None) -> tuple[str, str]:
    """Reason and words, or two empty texts. Every byte is read for it, so that a bad disk shows here."""
    try:
        for name in update.names:
            tensor = update.tensor(name)
            if not finite(tensor):
                return "not_finite", f"{name} holds values that are not finite"
            if examination is not None:
                examination.take(name, tensor)
        if examination is not None:
            examination.accept()
    except Unfit as e:
        return e.reason, e.detail
    except NeverWritten as e:
        return "bad_format", str(e)
    except (OSError, ValueError, RuntimeError) as e:
        return "unreadable", f"{type(e).__name__}: {e}"
    return "", ""


def _examine(
    file: protocol.UpdateFile, schema: protocol.WireSchema
) -> tuple[str, str, SafetensorsHeader | None]:
    try:
        header = read_safetensors(Path(file.path))
    except (BadSafetensors, OSError) as e:
        return "unreadable", str(e), None
    difference = schema_difference(header.tensors, schema)
    return ("schema_mismatch", difference, None) if difference else ("", "", header)


def aggregate(
    order: protocol.Aggregate,
    algorithm: Algorithm,
    schema: protocol.WireSchema,
    wire_dtype: str,
    outbox: Path,
    on_tensor: OnTensor = lambda: None,
    examine: Examine = lambda site: None,
) -> protocol.AggregateDone:
    """Carry the order out. `schema`: what an update of this federation holds. Raises LocalError, DiskFull."""
    began = time.perf_counter()
    updates, refused, detail = open_updates(order.updates, schema, on_tensor, examine)
    sites = [update.site for update in updates]

    def done(export: protocol.Export | None, reason: str = "", **more: Any) -> protocol.AggregateDone:
        seconds = time.perf_counter() - began
        return protocol.AggregateDone(
            order.round, order.attempt, export, sites, refused, reason, seconds=seconds, **more
        )

    if not updates:
        return done(None, "no_update", detail=detail)
    combined = algorithm.aggregate(updates, order.round)
    path = outbox / f"common-{order.round}-{order.attempt}.safetensors"

    def metadata() -> dict[str, object]:
        said: dict[str, object] = {"round": order.round, "attempt": order.attempt}
        hashes = {update.site: update.hash for update in updates}
        return said | ({SENT_IN: sent_in(hashes, combined.notes)} if wire_dtype == INT8 else {})

    try:
        _write(path, combined.tensors, wire_dtype, metadata)
    except ValueError as e:  # the updates do not fit together
        return done(None, "cannot_combine", detail=str(e))
    except _NotFinite as e:
        return done(None, "not_finite", detail=str(e))
    steps = min(MAX_CLAIMED_COUNT, max(file.steps for file in order.updates if file.site in sites))
    cases = min(MAX_CLAIMED_COUNT, sum(update.cases for update in updates))
    return done(protocol.Export(str(path), cases, steps), detail=detail, notes=combined.notes)


class _NotFinite(Exception):
    """The combination overflowed."""


def _write(
    path: Path,
    tensors: Iterable[tuple[str, Tensor]],
    wire_dtype: str,
    metadata: Callable[[], Mapping[str, object]],
) -> None:
    """A safetensors file, whole or not at all, of tensors that come one at a time; `metadata` is asked last.

    Which of them need float32 is known only when they are there, and the header stands first: bodies go to
    temporary files by the size of their items (so that all lie on multiples of it), then all are joined.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as e:
        raise LocalError(f"{path.parent}: cannot be made: {e.strerror}. Check the state directory.") from e
    try:
        with ExitStack() as stack:  # closing a body may fail once more where writing it did
            bodies: dict[int, IO[bytes]] = {}
            entries: dict[str, _Entry] = {}
            for name, tensor in tensors:
                if not finite(tensor):
                    raise _NotFinite(f"{name}: the combination holds values that are not finite")
                for entry, stored in entries_of(name, tensor, wire_dtype).items():
                    entries[entry] = _append(bodies, stored, path.parent, stack)
            atomic_write(path, lambda f: _join(f, bodies, entries, metadata()))
    except NotRepresentable as e:
        raise _NotFinite(f"the combination cannot be sent: {e}") from None
    except OSError as e:
        full = DiskFull if e.errno in (errno.ENOSPC, errno.EDQUOT) else LocalError
        raise full(
            f"{path}: the global model cannot be written: {e.strerror}. It needs about twice its size for a "
            f"while. Check the disk of {path.parent}, and free some space on it."
        ) from e


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where a tensor lies in the body of its item size."""

    dtype: str
    shape: tuple[int, ...]
    item_bytes: int
    begin: int
    end: int


def _append(bodies: dict[int, IO[bytes]], tensor: Tensor, folder: Path, stack: ExitStack) -> _Entry:
    if tensor.itemsize not in bodies:
        body = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (the stack closes it)
        bodies[tensor.itemsize] = stack.enter_context(body)
    file = bodies[tensor.itemsize]
    begin = file.tell()
    file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return _Entry(CODES[tensor.dtype], tuple(tensor.shape), tensor.itemsize, begin, file.tell())


def _join(
    file: BinaryIO,
    bodies: Mapping[int, IO[bytes]],
    entries: Mapping[str, _Entry],
    metadata: Mapping[str, object],
) -> None:
    """Header, then the bodies, the widest items first, so that every tensor lies on a multiple of its own."""
    starts, position = {}, 0
    for item_bytes in sorted(bodies, reverse=True):
        starts[item_bytes] = position
        position += bodies[item_bytes].tell()
    header: dict[str, Any] = {"__metadata__": {"gossipseg": FORMAT_VERSION, **_texts(metadata)}}
    for name, entry in entries.items():
        span = [starts[entry.item_bytes] + entry.begin, starts[entry.item_bytes] + entry.end]
        header[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": span}
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    file.write(len(raw).to_bytes(8, "little") + raw)
    for item_bytes in starts:
        bodies[item_bytes].seek(0)
        shutil.copyfileobj(bodies[item_bytes], file, 1 << 20)


def _texts(metadata: Mapping[str, object]) -> dict[str, str]:
    return {key: str(value) for key, value in metadata.items()}
