"""Checks signed manifests and terms against keys and files: marks invalid ones, describes a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from gossipseg.core.messages import Body
from gossipseg.core.types import (
    Manifest,
    ModelRef,
    Proposal,
    Site,
    SwapTerms,
    manifest_payload,
    terms_payload,
)
from gossipseg.errors import LocalError
from gossipseg.store import Schema, TensorInfo, read_safetensors_header

_B = TypeVar("_B", bound=Body)


class Verifier(Protocol):
    """Checks signatures against the listed certificates (trust.TrustList)."""

    def verify(self, site: Site, payload: bytes, signature: bytes) -> bool: ...

    @property
    def sites(self) -> frozenset[Site]: ...


def schema_hash(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Hash of the tensors' names and shapes, 64 hex digits.

    Types are left out: a tensor of half precision travels as float32 where its values do not fit.
    """
    listed = sorted((name, list(shape)) for name, shape in shapes.items())
    return hashlib.sha256(json.dumps(listed, separators=(",", ":")).encode()).hexdigest()


def described(tensors: Mapping[str, TensorInfo]) -> tuple[str, str]:
    """(schema hash, dtypes) of a file, as they stand in its manifest."""
    shapes = {name: info.shape for name, info in tensors.items()}
    return schema_hash(shapes), "+".join(sorted({info.dtype for info in tensors.values()}))


def draft(path: Path) -> Manifest | None:
    """The manifest's fields that only the file can give; the core fills in the rest. None: the file cannot be
    read."""
    try:
        schema, dtype = described(read_safetensors_header(path))
    except (ValueError, OSError, LocalError):
        return None
    return Manifest(schema=schema, dtype=dtype)


def file_differs(model: ModelRef, tensors: Mapping[str, TensorInfo]) -> str:
    """How a received file differs from its signed description, in words; "" if it does not."""
    manifest = model.manifest
    if manifest is None:
        return ""
    schema, dtype = described(tensors)
    if schema != manifest.schema:
        return "it holds other tensors than its manifest says"
    return f"it holds {dtype}, its manifest says {manifest.dtype[:80]}" if dtype != manifest.dtype else ""


def marked(body: _B, verifier: Verifier, schemas: Mapping[str, Schema]) -> _B:
    """The message, with the reason on each manifest, and on terms of a swap, that are invalid."""
    changes: dict[str, Any] = {}
    for f in fields(body):
        value = getattr(body, f.name)
        if isinstance(value, ModelRef):
            changes[f.name] = _examined(value, verifier, schemas)
        elif isinstance(value, Proposal):
            changes[f.name] = replace(value, model=_examined(value.model, verifier, schemas))
        elif isinstance(value, SwapTerms):
            changes[f.name] = replace(value, fault=_fault_of_terms(value, verifier))
    return replace(body, **changes) if changes else body


def _examined(model: ModelRef, verifier: Verifier, schemas: Mapping[str, Schema]) -> ModelRef:
    manifest = model.manifest
    if manifest is None:
        return model
    return replace(model, manifest=replace(manifest, fault=_fault(manifest, verifier, schemas)))


def _fault_of_terms(terms: SwapTerms, verifier: Verifier) -> str:
    signature = bytes.fromhex(terms.signature)
    return "" if verifier.verify(terms.maker, terms_payload(terms), signature) else "terms_forged"


def _fault(manifest: Manifest, verifier: Verifier, schemas: Mapping[str, Schema]) -> str:
    if manifest.maker not in verifier.sites:
        return "manifest_stranger"
    signature = bytes.fromhex(manifest.signature)
    if not verifier.verify(manifest.maker, manifest_payload(manifest), signature):
        return "manifest_forged"
    expected = schemas.get(manifest.kind)
    # A global model may hold tensors for single sites, and a personal one have a network of its own.
    if expected is None or manifest.kind in ("global", "personal"):
        return ""
    shapes = {name: tuple(shape) for name, (_, shape) in expected.items()}
    return "" if manifest.schema == schema_hash(shapes) else "schema_mismatch"
