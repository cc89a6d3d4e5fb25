"""The intake of model files: headers that overlap, leave holes, are huge or deep, lie about types, end early.

Whatever is refused here is refused before torch sees a byte; what is accepted, safetensors itself accepts.
"""

from __future__ import annotations

import json
import struct
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import safetensors
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from gossipseg.bridge.expected_files import header_room_bytes
from gossipseg.store import read_safetensors_header, schema_difference
from gossipseg.store.tensors import BadSafetensors

SCHEMA = {"w": ("F16", (4, 8)), "b": ("F16", (4,))}
GOOD: dict[str, Any] = {
    "w": {"dtype": "F16", "shape": [4, 8], "data_offsets": [0, 64]},
    "b": {"dtype": "F16", "shape": [4], "data_offsets": [64, 72]},
}
COUNTS = [100, pytest.param(20_000, marks=pytest.mark.faults)]


def file_of(header: Any, body: int = 72, *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(body)


def verdict(path: Path, data: bytes) -> str:
    """What the intake makes of a file: bad_format, differs or ok. Anything else is a mistake of ours."""
    path.write_bytes(data)
    try:
        found = read_safetensors_header(path)
    except BadSafetensors:
        return "bad_format"
    return "differs" if schema_difference(found, SCHEMA) else "ok"


def agrees(path: Path, data: bytes) -> None:
    """What we take, the library that reads the values takes too: no file means two things."""
    if verdict(path, data) != "bad_format":
        with safetensors.safe_open(path, framework="numpy") as f:
            assert set(f.keys()) == set(read_safetensors_header(path))


NATURAL = st.sampled_from([0, 1, 4, 8, 63, 64, 65, 72, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, -1, 0.5, True])
ODD = st.one_of(NATURAL, st.none(), st.text(max_size=4), st.lists(NATURAL, max_size=3))
ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F16", "F32", "BF16", "I8", "F4", "U64", "", "f16"]) | ODD,
        "shape": st.lists(NATURAL, max_size=4) | ODD,
        "data_offsets": st.lists(NATURAL, min_size=2, max_size=2) | ODD,
        "more": ODD,
    },
)
NAMES = st.sampled_from(["w", "b", "__metadata__", "", "a:w", "../w", "\0", "w" * 500])
HEADERS = st.one_of(
    st.dictionaries(NAMES, ENTRY | ODD, max_size=4),
    st.tuples(NAMES, ENTRY).map(lambda t: {**GOOD, t[0]: t[1]}),
    st.tuples(st.sampled_from(["w", "b"]), st.sampled_from(["dtype", "shape", "data_offsets"]), ODD).map(
        lambda t: {**GOOD, t[0]: {**GOOD[t[0]], t[1]: t[2]}}
    ),
    st.recursive(ODD, lambda inner: st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=8),
)


@st.composite
def mutated(draw: Any) -> bytes:
    """A good file with some bytes changed, cut, doubled."""
    data = bytearray(file_of(GOOD))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data) - 1))
        match draw(st.integers(0, 3)):
            case 0:
                data[at] = draw(st.integers(0, 255))
            case 1:
                del data[at : at + draw(st.integers(1, 40))]
            case 2:
                data[at:at] = data[at : at + draw(st.integers(1, 40))]
            case _:
                data[at:at] = draw(st.sampled_from([b'"', b"}", b"{", b"9" * 30, b"\xff", b"[", b"NaN"]))
        if not data:
            break
    return bytes(data)


FILES = st.one_of(
    st.binary(max_size=300),
    HEADERS.map(file_of),
    st.tuples(HEADERS, st.integers(0, 200), st.integers(0, 2**64 - 1) | st.integers(0, 400)).map(
        lambda t: file_of(t[0], t[1], length=t[2])
    ),
    mutated(),
    st.binary(max_size=200).map(file_of),
)


@pytest.mark.parametrize("count", COUNTS)
def test_every_file_is_taken_or_refused_in_words(tmp_path: Path, seen: Any, count: int) -> None:
    found: Counter[str] = Counter()
    path = tmp_path / "model.safetensors"

    @settings(max_examples=count, deadline=None, database=None, phases=(Phase.explicit, Phase.generate),
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(FILES)
    @example(file_of(GOOD))
    def throw(data: bytes) -> None:
        found[verdict(path, data)] += 1
        agrees(path, data)

    throw()
    assert found["ok"] and found["bad_format"]
    seen(f"{sum(found.values())} files: {dict(found)}")


def entry(begin: int, end: int, shape: list[int] | None = None, dtype: str = "F16") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape or [(end - begin) // 2], "data_offsets": [begin, end]}


NAMED: dict[str, tuple[bytes, str]] = {
    "overlap": (file_of({"w": entry(0, 64), "b": entry(60, 72)}), "overlaps"),
    "the same bytes twice": (file_of({"w": entry(0, 72), "b": entry(0, 72)}), "overlaps"),
    "hole": (file_of({"w": entry(0, 60), "b": entry(64, 72)}), "hole"),
    "more than the file": (file_of({"w": entry(0, 80)}), "end at byte"),
    "less than the file": (file_of({"w": entry(0, 64)}), "end at byte"),
    "shape and offsets differ": (file_of({"w": entry(0, 72, [4, 8])}), "its shape needs"),
    "a shape beyond all numbers": (file_of({"w": entry(0, 72, [2**62, 2**62])}), "its shape needs"),
    "a shape of nothing, many times": (file_of({"w": entry(0, 72, [2**62, 0])}), "its shape needs"),
    "a negative shape": (file_of({"w": entry(0, 72, [-36])}), "natural numbers"),
    "a type that is none": (file_of({"w": entry(0, 72, dtype="PICKLE")}), "unknown dtype"),
    "a name twice": (file_of(b'{"w":1,"w":2}'), "twice"),
    "NaN": (file_of(b'{"w":NaN}'), "NaN"),
    "no JSON": (file_of(b"{" + b"\xff" * 20), "not JSON"),
    "deep JSON": (file_of(b'{"w":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "not JSON"),
    "a number of a million digits": (file_of(b'{"w":' + b"9" * 1_000_000 + b"}"), "not JSON"),
    "a header longer than the file": (file_of(GOOD, length=1 << 40), "declares a header"),
    "a header of all numbers": (file_of(GOOD, length=2**64 - 1), "declares a header"),
    "cut in its header": (file_of(GOOD)[:40], "declares a header"),
    "cut in its body": (file_of(GOOD)[:-1], "end at byte"),
    "nothing": (b"", "too few"),
    "a pickle": (b"\x80\x04\x95" + bytes(60), "declares a header"),
    "a list": (file_of(b"[1, 2]"), "begin with {"),
    "metadata that is no table": (file_of({**GOOD, "__metadata__": [1]}), "__metadata__"),
}


@pytest.mark.parametrize("name", NAMED)
def test_a_lying_header_is_refused_with_what_is_wrong(tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.safetensors"
    data, words = NAMED[name]
    path.write_bytes(data)
    with pytest.raises(BadSafetensors, match=words):
        read_safetensors_header(path)


def large_headers(part: int) -> list[bytes]:
    """Many tensors, a name that nearly fills the header, many numbers: the largest, or a part of that."""
    tensors, numbers = 180_000 // part, 1_000_000 // part
    many = {f"t{i}": entry(2 * i, 2 * i + 2) for i in range(tensors)}
    long = {"n" * ((15 << 20) // part): entry(0, 2)}
    once = b"{" + b"".join(b'"%x":1,' % i for i in range(numbers)) + b'"z":1,"z":2}'
    return [file_of(many, 2 * tensors), file_of(long, 2), file_of(once, 0)]


@pytest.mark.slow
def test_a_header_of_the_largest_size_costs_time_in_proportion_to_it(tmp_path: Path, seen: Any) -> None:
    """Eleven to sixteen MiB of header against a quarter of that."""
    path = tmp_path / "model.safetensors"

    def processor_s(data: bytes) -> float:
        begun = time.process_time()
        assert verdict(path, data) in {"differs", "bad_format"}
        return time.process_time() - begun

    quarter, whole = ([processor_s(data) for data in large_headers(part)] for part in (4, 1))
    for less, more in zip(quarter, whole, strict=True):
        assert more < 9 * max(less, 0.05), "the time grows with the size, and not with its square"
    seen(f"headers of 11 to 16 MiB: at most {max(whole):.1f} s of processor time")


def test_a_header_may_be_as_large_as_the_expected_tensors_need() -> None:
    for names in (5, 5000):
        shapes = {f"encoder.layers.{i}.attention.weight": ("BF16", (4096, 4096, 3, 3)) for i in range(names)}
        header = {n: entry(2**40, 2**40 + 2, list(s), d) for n, (d, s) in shapes.items()}
        assert len(json.dumps(header)) < header_room_bytes("model", shapes, {"b", "c"}) < 6e6
        parts = {f"{site}:{n}": e for site in "bc" for n, e in header.items()} | header
        assert len(json.dumps(parts)) < header_room_bytes("global", shapes, {"b", "c"})
