"""Wire files in int8: round trip, refusals, admission, and aggregation of what was rounded."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from gossipseg.algos.base import Algorithm
from gossipseg.algos.fedavg import FedAvg
from gossipseg.algos.params import FedAvgParams, FedScaParams
from gossipseg.algos.registry import build
from gossipseg.core.offences import EXCUSED
from gossipseg.errors import LocalError, PeerRefused
from gossipseg.learn import protocol
from gossipseg.learn.exchange.admission import Admission
from gossipseg.learn.exchange.aggregate import UpdateOnDisk, aggregate
from gossipseg.learn.exchange.global_model import everything
from gossipseg.learn.exchange.quantisation import dequantised, quantised
from gossipseg.learn.exchange.wire_format import export_wire, load_common, load_incoming, wire_schema
from gossipseg.learn.params import AdmissionParams
from gossipseg.store import read_safetensors, read_safetensors_header

G = torch.Generator().manual_seed(0)
STATE = {
    "conv.weight": torch.randn(5, 3, 3, 3, generator=G),  # 135 values: the third block has 7
    "head.weight": torch.randn(8, 16, generator=G),
    "conv.bias": torch.randn(5, generator=G),
    "scale": torch.tensor(0.3),
    "count": torch.tensor([5]),
    "table": torch.tensor([[-128, 127]], dtype=torch.int8),
}
SCALES = "conv.weight..scales"


def q(tensor: Tensor) -> Tensor:
    return dequantised(*quantised(tensor))


def rounded(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: q(t) if name.endswith("weight") else t for name, t in state.items()}


def same(found: Any, expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[n], t) for n, t in expected.items())


def sent(folder: Path, name: str = "m", **changes: Tensor) -> Path:
    path = folder / f"{name}.safetensors"
    export_wire(path, {**STATE, **changes}, everything, "int8", {"site": name})
    return path


# ---------------------------------------------------------------- a file


def test_a_model_survives_the_wire(tmp_path: Path) -> None:
    path = sent(tmp_path)
    assert {n: (i.dtype, i.shape) for n, i in read_safetensors_header(path).items()} == {
        "conv.weight": ("I8", (5, 3, 3, 3)),
        SCALES: ("F16", (3,)),
        "head.weight": ("I8", (8, 16)),
        "head.weight..scales": ("F16", (2,)),
        "conv.bias": ("F32", (5,)),
        "scale": ("F32", ()),
        "count": ("I64", (1,)),
        "table": ("I8", (1, 2)),
    }
    back = load_incoming(path, STATE, everything, "int8", "south")
    assert same(back, rounded(STATE)) and back["conv.weight"].dtype is torch.float32
    assert not torch.equal(back["conv.weight"], STATE["conv.weight"])


def test_the_schema_is_what_is_written(tmp_path: Path) -> None:
    written = {n: (i.dtype, i.shape) for n, i in read_safetensors_header(sent(tmp_path)).items()}
    assert written == wire_schema(STATE, everything, "int8")


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e7])
def test_what_has_no_such_form_is_not_sent(tmp_path: Path, value: float) -> None:
    bad = STATE["conv.weight"].clone()
    bad[0, 0, 0, 0] = value
    with pytest.raises(LocalError, match=r"conv\.weight"):
        sent(tmp_path, **{"conv.weight": bad})
    assert not list(tmp_path.iterdir())


Change = Callable[[dict[str, Tensor]], Any]
W = "conv.weight"
REFUSALS: list[tuple[Change, str, str]] = [
    (lambda t: t.pop(SCALES), "schema_mismatch", f"{SCALES} is missing"),
    (lambda t: t.update({SCALES: t[SCALES][:2].clone()}), "schema_mismatch", f"{SCALES} has shape [2]"),
    (lambda t: t.update({SCALES: t[SCALES].float()}), "schema_mismatch", f"{SCALES} is F32, expected F16"),
    (lambda t: t.update({W: STATE[W].clone()}), "schema_mismatch", f"{W} is F32, expected I8"),
    (lambda t: t.update({W: STATE[W].half()}), "schema_mismatch", f"{W} is F16, expected I8"),
    (lambda t: t.update({"conv.bias..scales": torch.ones(1)}), "schema_mismatch", "conv.bias..scales is not"),
    (lambda t: t[SCALES].__setitem__(2, math.nan), "not_finite", f"{W} holds values"),
    (lambda t: t[SCALES].__setitem__(2, math.inf), "not_finite", f"{W} holds values"),
    (lambda t: t[SCALES].__setitem__(1, -0.01), "bad_format", f"{W} has a negative scale"),
    (lambda t: t[W].__setitem__((4, 2, 2, 2), -128), "bad_format", f"{W} holds -128"),
]


@pytest.mark.parametrize(("change", "reason", "detail"), REFUSALS)
def test_what_no_honest_site_writes_is_refused(
    tmp_path: Path, change: Change, reason: str, detail: str
) -> None:
    tensors = load_file(sent(tmp_path))
    change(tensors)
    bad = tmp_path / "bad.safetensors"
    save_file(tensors, bad)
    with pytest.raises(PeerRefused) as refused:
        load_incoming(bad, STATE, everything, "int8", "south")
    assert (refused.value.reason, refused.value.detail[: len(detail)]) == (reason, detail)
    with pytest.raises(PeerRefused) as refused:
        load_common(bad, "a", STATE, everything, "int8")
    assert refused.value.reason == reason
    done = combine(tmp_path, update(sent(tmp_path, "good")), update(bad))
    assert done.contributors == ["good"] and done.refused == {"bad": reason}
    assert reason not in EXCUSED, "it is the sender's offence"


@given(st.data())
def test_no_changed_byte_crashes_the_intake(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp()
    content = bytearray(sent(folder, "fuzz8").read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[at] = data.draw(st.integers(0, 255))
    path = folder / "fuzz8.safetensors"
    path.write_bytes(content)
    try:
        found = load_incoming(path, STATE, everything, "int8", "south")
    except PeerRefused:
        return
    assert all(bool(t.isfinite().all()) for t in found.values())


@pytest.mark.parametrize("theirs", ["float16", "bfloat16", "float32"])
def test_files_of_another_wire_dtype_are_refused_both_ways(tmp_path: Path, theirs: str) -> None:
    export_wire(tmp_path / "theirs", STATE, everything, theirs, {})
    for path, expected in ((tmp_path / "theirs", "int8"), (sent(tmp_path), theirs)):
        with pytest.raises(PeerRefused) as refused:
            load_incoming(path, STATE, everything, expected, "south")
        assert refused.value.reason == "schema_mismatch" and "conv.weight" in refused.value.detail


@pytest.mark.parametrize(
    ("weight", "reason"),
    [(50.0, "norm_exploded"), (-1.0, "unrelated"), (1.1, "")],
)
def test_admission_measures_what_the_file_stands_for(tmp_path: Path, weight: float, reason: str) -> None:
    """The bytes of q are alike whatever the scale: only the product has a norm."""
    changes = {name: STATE[name] * weight for name in ("conv.weight", "head.weight")}
    path, admission = sent(tmp_path, **changes), Admission(AdmissionParams())
    if not reason:
        assert load_incoming(path, STATE, everything, "int8", "south", admission)
        assert admission.accepted == 1
        return
    with pytest.raises(PeerRefused) as refused:
        load_incoming(path, STATE, everything, "int8", "south", admission)
    assert refused.value.reason == reason
    examine = Admission(AdmissionParams())
    done = combine(tmp_path, update(path), examine=lambda site: examine.against(STATE))
    assert done.export is None and done.refused == {"m": reason}


# ---------------------------------------------------------------- the coordinator


def update(path: Path, cases: int = 1) -> protocol.UpdateFile:
    return protocol.UpdateFile(path.stem, str(path), cases, steps=cases, hash=path.stem * 20)


def combine(
    folder: Path, *files: protocol.UpdateFile, algorithm: Algorithm | None = None, **more: Any
) -> protocol.AggregateDone:
    schema = wire_schema(STATE, everything, "int8")
    order = protocol.Aggregate(3, 1, list(files))
    return aggregate(order, algorithm or FedAvg(), schema, "int8", folder / "outbox", **more)


def states(count: int) -> list[dict[str, Tensor]]:
    return [
        {name: torch.randn(t.shape, generator=G) if t.is_floating_point() else t for name, t in STATE.items()}
        for _ in range(count)
    ]


def test_an_average_of_files_is_the_rounded_average_of_what_they_stand_for(tmp_path: Path) -> None:
    one, four = states(2)
    done = combine(tmp_path, update(sent(tmp_path, "a", **one)), update(sent(tmp_path, "b", **four), 3))
    assert done.export is not None
    found = load_common(Path(done.export.path), "a", STATE, everything, "int8")
    mine, theirs = rounded(one), rounded(four)
    for name in ("conv.weight", "head.weight"):
        assert torch.equal(found[name], q((mine[name] * 0.25).add(theirs[name], alpha=0.75))), name
    assert torch.allclose(found["conv.bias"], one["conv.bias"] / 4 + four["conv.bias"] * 3 / 4)
    assert torch.equal(found["table"], STATE["table"])
    header = read_safetensors(Path(done.export.path))
    assert {n: (i.dtype, i.shape) for n, i in header.tensors.items()} == wire_schema(
        STATE, everything, "int8"
    )
    assert header.metadata["updates"] == "a" * 16 + "," + "b" * 16


@pytest.mark.parametrize("robust", ["median", "trimmed_mean", "krum"])
def test_robust_rules_read_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, robust: str) -> None:
    """In stretches that end within a block of 64, and give what whole tensors give."""
    all_five = states(5)
    files = [update(sent(tmp_path, f"s{i}", **state)) for i, state in enumerate(all_five)]
    rule = build(FedAvgParams(robust=robust))
    whole = combine(tmp_path / "w", *files, algorithm=rule)
    monkeypatch.setattr("gossipseg.algos.robust.BLOCK_VALUES", 50)
    parts = combine(tmp_path / "p", *files, algorithm=rule)
    assert whole.export is not None and parts.export is not None
    assert same(load_file(parts.export.path), load_file(whole.export.path))
    if robust == "median":
        expected = torch.stack([q(state["conv.weight"]) for state in all_five]).median(0).values
        found = load_common(Path(parts.export.path), "a", STATE, everything, "int8")
        assert found is not None and torch.equal(found["conv.weight"], q(expected))


def test_a_part_reads_the_blocks_that_it_needs(tmp_path: Path) -> None:
    path = sent(tmp_path)
    found = UpdateOnDisk(update(path), read_safetensors(path))
    assert found.names == sorted(STATE)
    whole = found.tensor("conv.weight").flatten()
    assert torch.equal(whole, q(STATE["conv.weight"]).flatten())
    for begin, end in ((0, 1), (63, 65), (64, 128), (100, 135), (134, 135)):
        assert torch.equal(found.part("conv.weight", begin, end), whole[begin:end])


def test_a_combination_beyond_int8_is_no_global_model(tmp_path: Path) -> None:
    class Exploding(FedAvg):
        def aggregate(self, updates, round):  # type: ignore[no-untyped-def]
            combined = super().aggregate(updates, round)
            combined.tensors = ((n, t * 1e7) for n, t in combined.tensors)
            return combined

    done = combine(tmp_path, update(sent(tmp_path)), algorithm=Exploding())
    assert done.export is None and done.reason == "not_finite" and "int8" in done.detail


def test_tensors_for_one_site_alone(tmp_path: Path) -> None:
    """FedSCA's files: θ and Δ in an update; a global model with tensors `site:name`, each with its scales."""
    theta = {"low.weight": torch.randn(4, 40, generator=G)}
    fedsca = build(FedScaParams(warmup_rounds=0), private_names=["a.high_adapter.w"])
    files = []
    for i, site in enumerate(("a", "b")):
        state = {"low.weight": theta["low.weight"] + i}
        path = tmp_path / f"{site}.safetensors"
        export_wire(path, fedsca.update_of(state, theta), everything, "int8", {})
        files.append(update(path))
    schema = wire_schema(fedsca.update_of(theta, theta), everything, "int8")
    done = aggregate(protocol.Aggregate(1, 0, files), fedsca, schema, "int8", tmp_path / "outbox")
    assert done.export is not None and done.refused == {}
    names = set(read_safetensors_header(Path(done.export.path)))
    assert {"a:low.weight", "a:low.weight..scales", "low.weight", "low.weight..scales"} <= names
    for site in ("a", "b", "latecomer"):
        mine = load_common(Path(done.export.path), site, theta, everything, "int8")
        assert mine is not None and mine.keys() == {"low.weight"}
    with pytest.raises(PeerRefused, match="schema_mismatch"):
        tensors = load_file(done.export.path)
        del tensors["a:low.weight..scales"]
        save_file(tensors, tmp_path / "bad")
        load_common(tmp_path / "bad", "a", theta, everything, "int8")
