"""The wire file: what travels, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from gossipseg.errors import LocalError, PeerRefused
from gossipseg.learn.exchange.admission import Admission
from gossipseg.learn.exchange.wire_format import content_hash, export_wire, load_incoming, shared, wire_schema
from gossipseg.learn.params import AdmissionParams
from gossipseg.store import read_safetensors_header


def everything(name: str) -> bool:
    return True


def public(name: str) -> bool:
    return not name.startswith("private")


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return {
        "conv.weight": torch.randn(3, 2, 3, 3, generator=g),
        "conv.bias": torch.randn(3, generator=g),
        "counter": torch.tensor(5),
        "private.weight": torch.randn(2, 2, generator=g),
    }


def refusal(path: Path, state: dict[str, torch.Tensor], dtype: str = "float16") -> PeerRefused:
    with pytest.raises(PeerRefused) as caught:
        load_incoming(path, state, public, dtype, "south")
    assert caught.value.peer == "south"
    return caught.value


@pytest.mark.parametrize(
    ("dtype", "code", "tolerance"),
    [("float16", "F16", 1e-3), ("bfloat16", "BF16", 1e-2), ("float32", "F32", 0)],
)
def test_a_model_survives_the_wire(
    tmp_path: Path, state: dict[str, torch.Tensor], dtype: str, code: str, tolerance: float
) -> None:
    file = tmp_path / "outbox" / "m.safetensors"
    export_wire(file, state, public, dtype, {"site": "north", "round": 3, "dice_val": None})
    header = read_safetensors_header(file)
    assert {n: i.dtype for n, i in header.items()} == {
        "conv.weight": code,
        "conv.bias": "F32",
        "counter": "I64",
    }
    with safe_open(file, "pt") as f:
        assert f.metadata() == {"gossipseg": "1", "site": "north", "round": "3", "dice_val": ""}
    back = load_incoming(file, state, public, dtype, "south")
    assert back.keys() == {"conv.weight", "conv.bias", "counter"}
    assert torch.allclose(back["conv.weight"], state["conv.weight"], rtol=tolerance, atol=tolerance)
    assert torch.equal(back["conv.bias"], state["conv.bias"]) and back["counter"] == 5
    assert back["conv.weight"].dtype is torch.float32


def test_the_schema_is_what_is_written(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    export_wire(tmp_path / "m", state, public, "float16", {})
    written = {n: (i.dtype, i.shape) for n, i in read_safetensors_header(tmp_path / "m").items()}
    assert written == wire_schema(state, public, "float16")


def test_values_outside_float16_travel_as_float32(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    state["conv.weight"][0, 0, 0, 0] = 1e6
    export_wire(tmp_path / "m", state, public, "float16", {})
    assert read_safetensors_header(tmp_path / "m")["conv.weight"].dtype == "F32"
    back = load_incoming(tmp_path / "m", state, public, "float16", "south")
    assert torch.equal(back["conv.weight"], state["conv.weight"])


def test_a_model_that_is_not_finite_is_not_sent(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    state["conv.bias"][0] = float("nan")
    with pytest.raises(LocalError, match=r"conv\.bias"):
        export_wire(tmp_path / "m", state, public, "float16", {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        (lambda s: s.pop("conv.bias"), "conv.bias is missing"),
        (lambda s: s.update(extra=torch.zeros(2)), "extra is not among the shared tensors"),
        (lambda s: s.update({"private.weight": torch.zeros(2, 2)}), "private.weight is not among"),
        (lambda s: s.update({"conv.weight": torch.zeros(3, 2, 3).half()}), "conv.weight has shape [3, 2, 3]"),
        (lambda s: s.update({"conv.weight": torch.zeros(3, 2, 3, 3).double()}), "conv.weight is F64"),
        (lambda s: s.update(counter=torch.tensor(1.0)), "counter is F32, expected I64"),
    ],
)
def test_another_schema_is_refused_by_name(
    tmp_path: Path, state: dict[str, torch.Tensor], change: object, detail: str
) -> None:
    export_wire(tmp_path / "good", state, public, "float16", {})
    with safe_open(tmp_path / "good", "pt") as f:
        tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 (not a mapping)
    change(tensors)  # type: ignore[operator]
    save_file(tensors, tmp_path / "bad")
    error = refusal(tmp_path / "bad", state)
    assert error.reason == "schema_mismatch" and error.detail.startswith(detail)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused(
    tmp_path: Path, state: dict[str, torch.Tensor], value: float
) -> None:
    bad = {n: t.half() if t.dim() > 1 else t for n, t in shared(state, public).items()}
    bad["conv.weight"][1, 1, 1, 1] = value
    save_file(bad, tmp_path / "bad")
    error = refusal(tmp_path / "bad", state)
    assert (error.reason, error.detail) == ("not_finite", "conv.weight holds values that are not finite")


def test_what_is_no_safetensors_file_is_unreadable(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    (tmp_path / "bad").write_bytes(b"\x80\x02}q\x00.")  # a pickle
    assert refusal(tmp_path / "bad", state).reason == "unreadable"
    assert refusal(tmp_path / "absent", state).reason == "unreadable"


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_intake(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    file.write_bytes(data)
    with pytest.raises(PeerRefused):
        load_incoming(file, {"w": torch.zeros(2, 2)}, everything, "float16", "south")


def test_the_content_hash_sees_values_names_and_sharing(state: dict[str, torch.Tensor]) -> None:
    first = content_hash(state, public)
    state["private.weight"] += 1
    assert content_hash(state, public) == first
    state["conv.weight"][0, 0, 0, 0] += 1
    assert content_hash(state, public) != first


@pytest.mark.parametrize("checked", [False, True])
def test_a_table_of_the_network_is_as_this_site_has_it(
    tmp_path: Path, state: dict[str, torch.Tensor], checked: bool
) -> None:
    """A wrong index in a transformer's table would end the process that predicts with it."""
    own = {**state, "attention.index": torch.tensor([[0, 1], [2, 3]])}
    theirs = {**own, "attention.index": torch.tensor([[0, 1], [2, 1 << 40]])}
    admission = Admission(AdmissionParams()) if checked else None
    export_wire(tmp_path / "good", own, public, "int8", {})
    assert load_incoming(tmp_path / "good", own, public, "int8", "south", admission).keys() == own.keys() - {
        "private.weight"
    }
    export_wire(tmp_path / "bad", theirs, public, "int8", {})
    with pytest.raises(PeerRefused, match=r"attention\.index is a table") as caught:
        load_incoming(tmp_path / "bad", own, public, "int8", "south", admission)
    assert caught.value.reason == "bad_format"
