"""The header reader believes nothing: what it accepts, the safetensors library reads in the same way."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from gossipseg.store import (
    BadSafetensors,
    TensorInfo,
    by_addressee,
    is_scales,
    read_safetensors,
    read_safetensors_header,
    schema_difference,
)


def file_with(path: Path, header: object, body: bytes = b"", declared: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if declared is None else declared) + raw + body)
    return path


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_reads_names_dtypes_shapes_and_metadata(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    arrays = {
        "a.weight": np.zeros((2, 3, 1), np.float16),
        "b": np.arange(4, dtype=np.int64),
        "scalar": np.array(1, np.float32),
        "empty": np.zeros((0, 5), np.float32),
    }
    safetensors.numpy.save_file(arrays, path, metadata={"gossipseg": "1", "site": "north"})
    assert read_safetensors_header(path) == {
        "a.weight": TensorInfo("F16", (2, 3, 1)),
        "b": TensorInfo("I64", (4,)),
        "scalar": TensorInfo("F32", ()),
        "empty": TensorInfo("F32", (0, 5)),
    }
    header = read_safetensors(path)
    assert header.metadata == {"gossipseg": "1", "site": "north"}
    at = header.offsets["b"]
    assert np.frombuffer(path.read_bytes()[at : at + 32], np.int64).tolist() == [0, 1, 2, 3]
    assert header.tensors["a.weight"].size_bytes == 12


@pytest.mark.parametrize("declared", [1 << 20, 1 << 63, (1 << 64) - 1, 10_000])
def test_a_lying_header_length(tmp_path: Path, declared: int) -> None:
    path = file_with(tmp_path / "m", {"a": entry()}, bytes(8), declared)
    with pytest.raises(BadSafetensors, match=f"declares a header of {declared} bytes"):
        read_safetensors_header(path)


def test_a_header_over_the_limit_is_not_read(tmp_path: Path) -> None:
    path = file_with(tmp_path / "m", {"a" * 1000: entry()}, bytes(8))
    with pytest.raises(BadSafetensors, match="at most 100 are allowed"):
        read_safetensors_header(path, max_header_bytes=100)
    assert read_safetensors_header(path, max_header_bytes=2000)


@pytest.mark.parametrize(
    "content", [b"", b"\x01", bytes(7), bytes(8), struct.pack("<Q", 2) + b"{", bytes(100)]
)
def test_truncated_or_empty(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(BadSafetensors):
        read_safetensors_header(tmp_path / "m")


@pytest.mark.parametrize(
    ("header", "body", "says"),
    [
        (b"not json", 0, "begin with {"),
        (b" {}", 0, "begin with {"),
        (b'{"a":', 0, "not JSON"),
        (b'{"a": \xff}', 0, "not JSON"),
        (b'{"a":' + b"[" * 200_000, 0, "not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", 0, "not JSON"),
        (b'{"a": NaN}', 0, "holds NaN"),
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{}}', 8, "twice"),
        (b'{"a":{"dtype":"F32","dtype":"F16","shape":[2],"data_offsets":[0,8]}}', 8, "twice"),
        ({"a": entry(dtype="F33")}, 8, "unknown dtype"),
        ({"a": entry(dtype=["F32"])}, 8, "unknown dtype"),
        ({"a": entry(shape=[-2])}, 8, "natural numbers"),
        ({"a": entry(shape=[2.0])}, 8, "natural numbers"),
        ({"a": entry(shape=[True, 2])}, 8, "natural numbers"),
        ({"a": entry(shape="2")}, 8, "natural numbers"),
        ({"a": entry(shape=[1] * 100)}, 4, "natural numbers"),
        ({"a": entry(shape=[1 << 63])}, 8, "natural numbers"),
        ({"a": entry(shape=[1 << 62, 1 << 62])}, 8, "its shape needs"),
        ({"a": entry(offsets=[0, 4])}, 8, "its shape needs 8 bytes, its offsets hold 4"),
        ({"a": entry(offsets=[8, 0])}, 8, "its offsets hold -8"),
        ({"a": entry(offsets=[0])}, 8, "two natural numbers"),
        ({"a": entry(offsets=[-8, 0])}, 8, "two natural numbers"),
        ({"a": entry(offsets=[8, 16])}, 16, "leaves a hole"),
        ({"a": entry(), "b": entry(offsets=[4, 12])}, 12, "overlaps"),
        ({"a": entry(), "b": entry()}, 8, "overlaps"),
        ({"a": entry()}, 4, "the file at"),
        ({"a": entry()}, 9, "the file at"),
        ({"a": entry(), "b": entry(offsets=[1 << 40, (1 << 40) + 8])}, 16, "leaves a hole"),
        ({}, 1, "the file at"),
        ({"a": {**entry(), "extra": 1}}, 8, "nothing else"),
        ({"a": {"dtype": "F32", "shape": [2]}}, 8, "must have"),
        ({"a": 7}, 8, "must have"),
        ({"__metadata__": {"a": 1}}, 0, "table of texts"),
        ({"__metadata__": ["a"]}, 0, "table of texts"),
    ],
)
def test_lies_are_refused_and_named(tmp_path: Path, header, body: int, says: str) -> None:
    path = file_with(tmp_path / "m.part", header, bytes(body))
    with pytest.raises(BadSafetensors, match=says) as e:
        read_safetensors_header(path)
    assert str(e.value).startswith("m.part: ") and len(str(e.value)) < 400
    assert e.value.reason == "bad_format"


def test_a_long_name_does_not_fill_the_log(tmp_path: Path) -> None:
    path = file_with(tmp_path / "m", {"x" * 100_000: entry(dtype="F33")}, bytes(8))
    with pytest.raises(BadSafetensors) as e:
        read_safetensors_header(path)
    assert len(str(e.value)) < 200


def library(path: Path) -> dict[str, TensorInfo] | None:
    """What the safetensors library makes of the file; None if it refuses it."""
    try:
        found = safetensors.deserialize(path.read_bytes())
    except safetensors.SafetensorError:
        return None
    return {name: TensorInfo(info["dtype"], tuple(info["shape"])) for name, info in found}


def ours(path: Path) -> dict[str, TensorInfo] | None:
    try:
        return read_safetensors_header(path)
    except BadSafetensors:
        return None


SHAPES = st.lists(st.integers(0, 3), max_size=3)
NUMBERS = st.integers(0, 40) | st.integers(-2, 1 << 64) | st.booleans() | st.floats() | st.none()
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I64", "BOOL", "F99", ""]) | st.none(),
        "shape": st.lists(st.integers(0, 4) | NUMBERS, max_size=3) | st.none(),
        "data_offsets": st.lists(st.integers(0, 40) | NUMBERS, max_size=3),
    },
    optional={"extra": st.none()},
)


@settings(max_examples=300, deadline=None)
@given(
    header=st.dictionaries(st.text(max_size=3) | st.just("__metadata__"), ENTRIES | NUMBERS, max_size=3),
    body=st.integers(0, 60),
)
def test_nothing_is_accepted_that_the_library_refuses(tmp_path_factory, header, body: int) -> None:
    path = file_with(tmp_path_factory.getbasetemp() / "lies", header, bytes(body))
    if (tensors := ours(path)) is not None:
        assert library(path) == tensors


@settings(max_examples=100, deadline=None)
@given(
    shapes=st.dictionaries(st.text(min_size=1, max_size=5), SHAPES, max_size=4),
    edit=st.none() | st.tuples(st.integers(0, 400), st.integers(0, 255)),
    cut=st.integers(0, 3),
)
def test_real_files_are_read_and_damaged_ones_never_misread(tmp_path_factory, shapes, edit, cut) -> None:
    path = tmp_path_factory.getbasetemp() / "real"
    raw = bytearray(safetensors.numpy.save({n: np.zeros(s, np.float16) for n, s in shapes.items()}))
    if edit is not None and edit[0] < len(raw):
        raw[edit[0]] = edit[1]
    path.write_bytes(raw[: len(raw) - cut])
    tensors = ours(path)
    if edit is None and cut == 0:
        assert tensors == {n: TensorInfo("F16", tuple(s)) for n, s in shapes.items()}
    if tensors is not None:
        assert library(path) == tensors


SCHEMA = {"w": ("F16", (10, 20)), "n": ("I64", (1,))}
GOOD = {"w": TensorInfo("F16", (10, 20)), "n": TensorInfo("I64", (1,))}


@pytest.mark.parametrize(
    ("tensors", "difference"),
    [
        (GOOD, ""),
        ({**GOOD, "w": TensorInfo("F32", (10, 20))}, ""),
        ({**GOOD, "n": TensorInfo("F32", (1,))}, "n is F32, expected I64"),
        ({**GOOD, "w": TensorInfo("BF16", (10, 20))}, "w is BF16, expected F16"),
        ({**GOOD, "w": TensorInfo("F16", (20, 10))}, "w has shape [20, 10], expected [10, 20]"),
        ({"n": GOOD["n"]}, "w is missing"),
        ({**GOOD, "v": TensorInfo("F16", (1,))}, "v is not among the shared tensors"),
    ],
)
def test_a_difference_of_schemas_is_named(tensors: dict[str, TensorInfo], difference: str) -> None:
    assert schema_difference(tensors, SCHEMA) == difference


def test_the_parts_of_a_common_model() -> None:
    info = TensorInfo("F16", (1,))
    assert by_addressee({"a:x.w": info, "a:x.b": info, "b:x.w": info, "y": info, ":y": info}) == {
        "a": {"x.w": info, "x.b": info},
        "b": {"x.w": info},
        "": {"y": info, ":y": info},
    }


QUANTISED = {"w": ("I8", (5, 13)), "w..scales": ("F16", (2,)), "h": ("F16", (4, 4))}


@pytest.mark.parametrize(
    ("name", "found", "difference"),
    [
        ("", None, ""),
        ("h", TensorInfo("F32", (4, 4)), ""),
        ("w", TensorInfo("F16", (5, 13)), "w is F16, expected I8"),
        ("w", TensorInfo("F32", (5, 13)), "w is F32, expected I8"),
        ("h", TensorInfo("I8", (4, 4)), "h is I8, expected F16"),
        ("w..scales", TensorInfo("F32", (2,)), "w..scales is F32, expected F16"),
        ("w..scales", TensorInfo("F16", (3,)), "w..scales has shape [3], expected [2]"),
        ("w..scales", None, "w..scales is missing"),
        ("h..scales", TensorInfo("F16", (1,)), "h..scales is not among the shared tensors"),
    ],
)
def test_a_quantised_tensor_is_two_entries_and_neither_may_be_wider(
    name: str, found: TensorInfo | None, difference: str
) -> None:
    tensors = {n: TensorInfo(dtype, shape) for n, (dtype, shape) in QUANTISED.items()}
    if found is not None:
        tensors[name] = found
    elif name:
        del tensors[name]
    assert schema_difference(tensors, QUANTISED) == difference


def test_scales_for_one_site_stay_with_their_tensor() -> None:
    info = TensorInfo("I8", (1, 1))
    parts = by_addressee({"north:w": info, "north:w..scales": info, "w..scales": info})
    assert parts == {"north": {"w": info, "w..scales": info}, "": {"w..scales": info}}
    assert is_scales("w..scales") and not is_scales("w.scales")
