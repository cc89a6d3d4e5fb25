"""Q of docs/design/equations.md §0 by hand, its bound, and the rest that a site keeps."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gossipseg.algos.fedavg import FedAvg
from gossipseg.algos.params import FedAvgParams, FedProxParams
from gossipseg.algos.registry import build
from gossipseg.learn import protocol
from gossipseg.learn.exchange.admission import Admission
from gossipseg.learn.exchange.aggregate import aggregate
from gossipseg.learn.exchange.global_model import GlobalModel, everything
from gossipseg.learn.exchange.quantisation import (
    BLOCK_VALUES,
    LARGEST,
    SMALLEST_SCALE,
    NotRepresentable,
    check_quantised,
    dequantised,
    quantised,
    scales_of,
)
from gossipseg.learn.exchange.wire_format import entries_of, export_wire, wire_schema
from gossipseg.learn.params import AdmissionParams, PrivacyParams
from tests.learn.harness import make_spec

MOST = LARGEST * 65504.0
"""The largest value that has a scale."""


def block(*values: float) -> Tensor:
    """One block of two axes: the values, then zeros."""
    return torch.tensor([*values, *[0.0] * (BLOCK_VALUES - len(values))]).reshape(8, 8)


def q_of(tensor: Tensor, count: int) -> list[int]:
    return [int(v) for v in quantised(tensor)[0].flatten()[:count]]


# ---------------------------------------------------------------- equations (1) to (3), by hand


def test_a_block_with_a_scale_of_one_half() -> None:
    """max|x| = 63.5 = 127·½. Halves go to the even neighbour: 63.5 → 64, 1.5 → 2, 0.5 → 0, −2.5 → −2."""
    x = block(63.5, -63.5, 31.75, 0.75, 0.25, -1.25, 10.1)
    q, scales = quantised(x)
    assert (q.dtype, q.shape, scales.dtype, scales.tolist()) == (torch.int8, (8, 8), torch.float16, [0.5])
    assert q_of(x, 8) == [127, -127, 64, 2, 0, -2, 20, 0]
    assert dequantised(q, scales).flatten()[:8].tolist() == [63.5, -63.5, 32.0, 1.0, 0.0, -1.0, 10.0, 0.0]


def test_a_scale_is_rounded_up() -> None:
    """1/127 = 1032.06·2^−17, and float16 has whole multiples of 2^−17 there: 1033, though 1032 is nearer."""
    q, scales = quantised(block(1.0, -0.5))
    assert scales.item() == 1033 / 131072 and (1 / 127 - 1032 / 131072) < (1033 / 131072 - 1 / 127)
    assert q.flatten()[:2].tolist() == [127, -63]  # 126.88 and −63.44
    assert dequantised(q, scales).flatten()[0] == 127 * 1033 / 131072


@pytest.mark.parametrize(
    ("largest", "scale", "q"),
    [
        (1e-6, 1, 17),  # 1e-6 = 16.8·2^−24: the smallest scale serves
        (127 * SMALLEST_SCALE, 1, 127),
        (127 * 1.5 * SMALLEST_SCALE, 2, 95),  # 95.25
        (127 * 2 * SMALLEST_SCALE, 2, 127),
        (1e-45, 1, 0),  # the smallest float32
    ],
)
def test_scales_below_the_normal_float16(largest: float, scale: int, q: int) -> None:
    values, scales = quantised(block(largest))
    assert scales.item() == scale * SMALLEST_SCALE and int(values[0, 0]) == q


def test_the_largest_value_that_travels() -> None:
    q, scales = quantised(block(MOST, -65504.0))
    assert scales.item() == 65504.0 and q.flatten()[:2].tolist() == [127, -1]


@pytest.mark.parametrize("value", [math.nextafter(MOST, math.inf) + 1, 3e38, math.inf, -math.inf, math.nan])
def test_what_has_no_such_form(value: float) -> None:
    for tensor in (block(value), block(1.0, value), torch.cat([torch.zeros(8, 8), block(value)])):
        with pytest.raises(NotRepresentable):
            quantised(tensor)


def test_a_block_of_zeros() -> None:
    q, scales = quantised(torch.cat([torch.zeros(8, 8), block(127.0), torch.zeros(8, 8)]))
    assert scales.tolist() == [0.0, 1.0, 0.0]
    assert q.flatten()[:BLOCK_VALUES].tolist() == [0] * BLOCK_VALUES
    assert not dequantised(q, scales)[:8].any() and dequantised(q, scales).isfinite().all()


def test_blocks_run_over_the_flattened_tensor_and_the_last_one_may_be_short() -> None:
    """5 × 13 values are a block of 64 and one of a single value."""
    x = torch.full((5, 13), 127.0)
    x[4, 12] = -12.7
    q, scales = quantised(x)
    assert q.shape == (5, 13) and scales.shape == (2,) and scales[0] == 1.0
    assert q[4, 12] == -127 and q.flatten()[:64].tolist() == [127] * 64
    assert dequantised(q, scales)[4, 12].item() == pytest.approx(-12.7, abs=float(scales[1]) / 2)
    assert quantised(torch.zeros(0, 5))[1].shape == (0,)


def test_which_tensors_are_quantised() -> None:
    kept = {"b": torch.randn(300), "s": torch.tensor(0.1), "n": torch.arange(6).reshape(2, 3)}
    for name, tensor in kept.items():
        entries = entries_of(name, tensor, "int8")
        assert entries.keys() == {name} and torch.equal(entries[name], tensor)
    assert entries_of("w", torch.randn(2, 2), "int8").keys() == {"w", "w..scales"}


def test_no_parameter_can_be_called_like_scales() -> None:
    with pytest.raises(KeyError, match="empty"):
        nn.Module().add_module("", nn.Linear(1, 1))
    with pytest.raises(KeyError, match="contain"):
        nn.Module().register_parameter("weight..scales", nn.Parameter(torch.zeros(1)))


# ---------------------------------------------------------------- the bound

reals = (
    st.floats(-MOST, MOST, width=32) | st.floats(-(2**-16), 2**-16, width=32) | st.floats(-2.0, 2.0, width=32)
)


@given(st.lists(reals, min_size=1, max_size=150))
def test_the_error_is_half_a_scale_at_most_and_no_smaller_scale_would_do(values: list[float]) -> None:
    """|x − Q(x)| ≤ s/2, exactly; s ≥ max|x|/127, and the float16 below s is not."""
    x = torch.tensor(values).reshape(1, -1)
    q, scales = quantised(x)
    check_quantised("x", q, scales)
    error = (x.double() - dequantised(q, scales).double()).abs().flatten()
    for i, s in enumerate(scales.double().tolist()):
        part = slice(i * BLOCK_VALUES, (i + 1) * BLOCK_VALUES)
        assert float(error[part].max()) <= s / 2
        largest = float(x.double().abs().flatten()[part].max())
        assert LARGEST * s >= largest
        below = (scales[i : i + 1].view(torch.int16) - 1).view(torch.float16).double() if s > 0 else None
        assert below is None or LARGEST * float(below) < largest


@given(st.integers(1, 300), st.data())
def test_a_part_is_the_same_as_the_whole(count: int, data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(count)
    q, scales = quantised(torch.randn(count, 1, generator=generator))
    begin = data.draw(st.integers(0, count - 1))
    end = data.draw(st.integers(begin + 1, count))
    touched = scales[begin // BLOCK_VALUES : -(-end // BLOCK_VALUES)]
    part = dequantised(q.flatten()[begin:end], touched, begin)
    assert torch.equal(part, dequantised(q, scales).flatten()[begin:end])


def test_every_float16_is_a_scale_of_its_own() -> None:
    """127·s asks for s, and the next float32 above for the next float16: all 31,744 of them."""
    scales = torch.arange(0x7C00, dtype=torch.int16).view(torch.float16)
    largest = scales.float() * LARGEST
    assert torch.equal(scales_of(largest), scales)
    above = torch.nextafter(largest, torch.tensor(math.inf))
    assert torch.equal(scales_of(above).view(torch.int16), scales.view(torch.int16) + 1)


# ---------------------------------------------------------------- the rest

STEP = 2.0**-7
"""The quantum: the block's largest value is 127 times it."""


class Site:
    """A site under a coordinator whose model is one row of 64 weights."""

    def __init__(self, folder: Path, name: str, algorithm: Any = None) -> None:
        self.net = nn.Linear(BLOCK_VALUES, 1, bias=False)
        with torch.no_grad():
            self.net.weight.copy_(torch.arange(BLOCK_VALUES) * STEP)
            self.net.weight[0, 0] = LARGEST * STEP
        state = SimpleNamespace(
            model=self.net, weights=lambda: dict(self.net.state_dict()), become=self._become
        )
        spec = dataclasses.replace(make_spec(folder, folder, site=name), wire_dtype="int8")
        admission = Admission(AdmissionParams())
        self.name, self._folder = name, folder
        self.model = GlobalModel(
            algorithm or FedAvg(),
            state,
            spec,
            admission,
            PrivacyParams(),  # type: ignore[arg-type]
        )

    def _become(self, weights: dict[str, Tensor]) -> None:
        self.net.load_state_dict(weights)

    @property
    def moved(self) -> float:
        """How far weight 20 has moved, in quanta."""
        return self.net.weight[0, 20].item() / STEP - 20

    def update(self, quanta: float, round: int) -> protocol.UpdateFile:
        """Move weight 20, and send the update."""
        with torch.no_grad():
            self.net.weight[0, 20] += quanta * STEP
        path, update = self._folder / f"{self.name}-{round}.safetensors", self.model.release(round)
        hash = export_wire(path, update, everything, "int8", {"site": self.name, "round": round})
        self.model.sent(update, hash)
        return protocol.UpdateFile(self.name, str(path), 1, hash=hash)


def combined(folder: Path, files: list[protocol.UpdateFile], round: int, algorithm: Any = None) -> Any:
    """The global model of the round, as GlobalModel.begin takes it."""
    schema = wire_schema({"weight": torch.zeros(1, BLOCK_VALUES)}, everything, "int8")
    order = protocol.Aggregate(round, 0, files)
    done = aggregate(order, algorithm or FedAvg(), schema, "int8", folder / "outbox")
    assert done.export is not None, done
    return protocol.GlobalModelFile(done.export.path, f"h{round}", round)


def after_fifty_rounds(folder: Path, quanta: tuple[float, ...], *, keeps: bool) -> float:
    sites = [Site(folder, f"s{i}") for i in range(len(quanta))]
    for site in sites:
        site.model.rest.active = keeps
    for round in range(1, 51):
        files = [site.update(step, round) for site, step in zip(sites, quanta, strict=True)]
        common = combined(folder, files, round)
        for site in sites:
            assert site.model.begin(common, settling_in=False) == (True, "")
    return sum(site.moved for site in sites) / len(sites)


def test_fifty_rounds_of_a_step_of_a_third_of_a_quantum_arrive(tmp_path: Path) -> None:
    assert after_fifty_rounds(tmp_path, (1 / 3, 1 / 3), keeps=True) == pytest.approx(50 / 3, abs=1e-3)
    assert after_fifty_rounds(tmp_path, (1 / 3, 1 / 3), keeps=False) == 0


def test_what_the_rounding_of_the_global_model_takes_is_not_kept(tmp_path: Path) -> None:
    """Of 17.5 quanta on average the sites' own rest saves most; the coordinator's rounding costs some."""
    assert 8 < after_fifty_rounds(tmp_path, (0.2, 0.5), keeps=True) < 17
    assert after_fifty_rounds(tmp_path, (0.2, 0.5), keeps=False) < 1


def one_round(folder: Path, algorithm: Any = None) -> tuple[Site, Site, list[protocol.UpdateFile]]:
    """Two sites that have sent 0.3 quanta: a rest of 0.3 each."""
    a, b = Site(folder, "a", algorithm), Site(folder, "b", algorithm)
    return a, b, [site.update(0.3, 1) for site in (a, b)]


def test_the_rest_is_added_once(tmp_path: Path) -> None:
    a, _, files = one_round(tmp_path)
    common = combined(tmp_path, files, 1)
    a.model.begin(common, settling_in=False)
    assert a.moved == pytest.approx(0.3, abs=1e-5)
    a.model.begin(common, settling_in=False)
    assert a.moved == 0 and not a.model.rest.tensors


def test_a_site_whose_update_is_not_in_the_global_model_adds_nothing(tmp_path: Path) -> None:
    a, b, files = one_round(tmp_path)
    common = combined(tmp_path, files[1:], 1)
    for site, moved in ((a, 0.0), (b, 0.3)):
        site.model.begin(common, settling_in=False)
        assert site.moved == pytest.approx(moved, abs=1e-5) and not site.model.rest.tensors


def test_an_update_that_a_later_one_has_replaced_leaves_no_rest(tmp_path: Path) -> None:
    a, _, files = one_round(tmp_path)
    a.update(0.1, 2)  # trained on alone meanwhile
    a.model.begin(combined(tmp_path, files, 1), settling_in=False)
    assert a.moved == 0


@pytest.mark.parametrize("how", [{"settling_in": True}, {"settling_in": False, "finetuning": True}])
def test_who_takes_over_or_fine_tunes_begins_with_the_global_model_itself(
    tmp_path: Path, how: dict[str, bool]
) -> None:
    a, _, files = one_round(tmp_path)
    a.model.begin(combined(tmp_path, files, 1), **how)
    assert a.moved == 0 and not a.model.rest.tensors


def test_a_global_model_that_is_refused_leaves_the_rest_where_it_is(tmp_path: Path) -> None:
    a, _, files = one_round(tmp_path)
    torn = Path(combined(tmp_path, files, 1).path)
    whole = torn.read_bytes()
    torn.write_bytes(whole[:-1])
    taken, why = a.model.begin(protocol.GlobalModelFile(str(torn), "h", 1), settling_in=False)
    assert not taken and "unreadable" in why
    assert a.moved == pytest.approx(0.3, abs=1e-5) and a.model.rest.tensors
    torn.write_bytes(whole)
    assert a.model.begin(protocol.GlobalModelFile(str(torn), "h", 1), settling_in=False) == (True, "")
    assert a.moved == pytest.approx(0.3, abs=1e-5) and not a.model.rest.tensors


def test_a_robust_rule_names_the_updates_it_has_used(tmp_path: Path) -> None:
    """Krum with f = 1 leaves one of five out, here the one that stands apart."""
    krum = build(FedAvgParams(robust="krum"))
    sites = [Site(tmp_path, f"s{i}", krum) for i in range(5)]
    files = [site.update(0.3 if i else 30.3, 1) for i, site in enumerate(sites)]
    common = combined(tmp_path, files, 1, krum)
    for site, moved in ((sites[0], 0.0), (sites[1], 0.3)):
        assert site.model.begin(common, settling_in=False) == (True, "")
        assert site.moved == pytest.approx(moved, abs=1e-5)


def test_the_anchor_is_the_global_model_without_the_rest(tmp_path: Path) -> None:
    a, _, files = one_round(tmp_path, build(FedProxParams()))
    a.model.begin(combined(tmp_path, files, 1), settling_in=False)
    assert a.moved == pytest.approx(0.3, abs=1e-5) and a.model.anchor["weight"][0, 20] == 20 * STEP


def test_the_rest_outlives_a_restart_and_an_old_checkpoint_has_none(tmp_path: Path) -> None:
    a, _, files = one_round(tmp_path)
    again = Site(tmp_path, "a")
    again.net.load_state_dict(a.net.state_dict())
    again.model.rest.load(a.model.rest.state())
    common = combined(tmp_path, files, 1)
    again.model.begin(common, settling_in=False)
    assert again.moved == pytest.approx(0.3, abs=1e-5)
    again.model.rest.load(None)
    again.model.begin(common, settling_in=False)
    assert again.moved == 0
