"""A peer's personal model of another network: what its record may say, what it may take, how it comes in."""

from __future__ import annotations

import dataclasses
import random
import resource
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from gossipseg.errors import PeerRefused
from gossipseg.learn.engine import dry_run
from gossipseg.learn.engine.build import build_described, build_personal
from gossipseg.learn.exchange.described_models import (
    BEARABLE,
    Cost,
    bounds_of,
    own_record,
    personal_schema,
    sent,
)
from gossipseg.learn.exchange.global_model import everything
from gossipseg.learn.exchange.wire_format import INT8, export_wire, load_incoming, wire_schema
from gossipseg.learn.settings import WorkerSettings, read_settings
from gossipseg.nets.params import NetworkParams
from gossipseg.nets.params.described import OPTIONS, NotDescribed, describe, read
from tests.learn.harness import make_spec

MAX_PARAMETERS = 64_000_000
WIDE = Cost(MAX_PARAMETERS, 1 << 40, 1 << 36, 1 << 30)


def settings(dims: int = 2, own: dict[str, Any] | None = None, patch: int = 64) -> WorkerSettings:
    spec = make_spec(
        Path("data"), Path("state"), dims=dims, personal_network=own, training={"personal": "always"}
    )
    spec = dataclasses.replace(spec, task={**spec.task, "patch_size": (patch,) * dims})
    return read_settings(spec)


HERE = settings()
RICH: dict[str, dict[str, Any]] = {
    "unet": {"options": {"channels": (4, 8, 16), "strides": (2, 2), "num_res_units": 1}},
    "dynunet": {"width": 4, "options": {"res_block": True, "deep_supr_num": 2}},
    "segresnet": {"width": 8, "options": {"blocks_down": [1, 2, 2], "blocks_up": [1, 1]}},
    "swinunetr": {"width": 12, "options": {"depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8]}},
}


# ---------------------------------------------------------------- one that comes in


@pytest.mark.parametrize("name", OPTIONS)
def test_a_model_goes_to_another_site_and_predicts_there(tmp_path: Path, name: str) -> None:
    """As its maker does, but for the eight bits."""
    there = settings(own={"name": name, "width": 4, **RICH.get(name, {})})
    net = build_personal(there).eval()
    record = own_record(there)
    assert record is not None and record["name"] == name
    told = personal_schema(record, HERE, WIDE, "south")
    assert told.schema == wire_schema(sent(net.state_dict()), everything, INT8)
    assert all(t.is_meta for t in told.reference.values())
    path = tmp_path / "personal.safetensors"
    export_wire(path, sent(net.state_dict()), everything, INT8, {})
    weights = load_incoming(path, told.reference, everything, INT8, "south")
    here = build_described(told.record, weights, HERE).eval()
    image = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        mine, theirs = here(image).logits, net(image).logits
    assert mine.shape == (1, 2, 64, 64)
    assert float((mine - theirs).abs().mean()) < 0.05 * float(theirs.abs().mean())


@pytest.mark.parametrize("name", OPTIONS)
def test_what_is_counted_without_memory_is_what_the_network_has(name: str) -> None:
    here = settings(3, own={"name": name, "width": 12})
    told = personal_schema(describe(NetworkParams(name, 12)), here, WIDE, "south")
    state = build_personal(here).state_dict()
    assert told.cost.parameters == sum(t.numel() for t in state.values())
    assert {n: t.shape for n, t in told.reference.items()} == {n: t.shape for n, t in sent(state).items()}


def test_tables_of_indices_do_not_travel(tmp_path: Path) -> None:
    """A stranger's could point outside, which ends a worker on a GPU."""
    here = settings(own={"name": "swinunetr", "width": 12})
    state = build_personal(here).state_dict()
    tables = {n for n, t in state.items() if not t.is_floating_point()}
    told = personal_schema(describe(NetworkParams("swinunetr", 12)), here, WIDE, "south")
    assert tables and not tables & set(told.schema)
    file = tmp_path / "poisoned.safetensors"
    export_wire(file, state, everything, INT8, {})
    with pytest.raises(PeerRefused, match="schema_mismatch"):
        load_incoming(file, told.reference, everything, INT8, "south")
    with pytest.raises(RuntimeError, match="not those of swinunetr"):
        build_described(told.record, dict(list(sent(state).items())[1:]), here)


def test_a_file_of_another_network_than_its_record_is_refused(tmp_path: Path) -> None:
    net = build_personal(settings(own={"name": "segresnet", "width": 4}))
    path = tmp_path / "personal.safetensors"
    export_wire(path, sent(net.state_dict()), everything, INT8, {})
    told = personal_schema(describe(NetworkParams("segresnet", 8)), HERE, WIDE, "south")
    with pytest.raises(PeerRefused, match="schema_mismatch"):
        load_incoming(path, told.reference, everything, INT8, "south")


def test_the_random_state_is_left_as_it_was() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    personal_schema(describe(NetworkParams("segresnet", 8)), HERE, WIDE, "south")
    bounds_of(HERE, MAX_PARAMETERS)
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------- what it may take


def test_a_site_bears_a_multiple_of_its_shared_model_and_never_less_than_a_floor() -> None:
    small = bounds_of(HERE, MAX_PARAMETERS)
    assert small == dataclasses.replace(BEARABLE, parameters=MAX_PARAMETERS)
    spec = dataclasses.replace(HERE.spec, network={**HERE.spec.network, "width": 96})
    spec = dataclasses.replace(spec, task={**spec.task, "patch_size": (512, 512)})
    wide = bounds_of(read_settings(spec), 5)
    assert wide.parameters == 5 and wide.multiplications > small.multiplications
    assert wide.values > small.values and wide.largest >= small.largest


@pytest.mark.parametrize(
    ("record", "bounds", "said"),
    [
        ({"name": "segresnet", "width": 512}, {}, "parameters; this site takes 64,000,000"),
        ({"name": "sanet", "width": 1024}, {}, "parameters"),
        ({"name": "dca_unet", "width": 12}, {"multiplications": 10**6}, "multiplications"),
        ({"name": "dca_unet", "width": 12}, {"values": 10**5}, "values in the prediction"),
        ({"name": "dca_unet", "width": 12}, {"largest": 10**4}, "values in one result"),
        # few parameters, but every convolution at full size
        (
            {"name": "dynunet", "width": 1, "options": {
                "kernel_size": [7] * 8, "strides": [1] * 8, "upsample_kernel_size": [1] * 7,
                "filters": [256] * 8, "deep_supervision": False}},
            {"parameters": 10**9},
            "multiplications",
        ),
    ],
)  # fmt: skip
def test_a_network_that_takes_too_much_is_refused(
    record: dict[str, Any], bounds: dict[str, int], said: str
) -> None:
    allowed = dataclasses.replace(bounds_of(HERE, MAX_PARAMETERS), **bounds)
    with pytest.raises(PeerRefused, match=said) as raised:
        personal_schema(record, HERE, allowed, "south")
    assert (raised.value.peer, raised.value.reason) == ("south", "network_too_large")


# ---------------------------------------------------------------- what a record may say


@pytest.mark.parametrize(
    "record",
    [
        None,
        [],
        "segresnet",
        {},
        {"name": "segresnet"},
        {"name": "adapted_sam", "width": 12},
        {"name": "cowpro_encoder", "width": 64},
        {"name": "no_such", "width": 12},
        {"name": "segresnet", "width": 8, "norm": "batch"},
        {"name": "segresnet", "width": True},
        {"name": "segresnet", "width": 8.0},
        {"name": "segresnet", "width": 8, "dropout": float("nan")},
        {"name": "segresnet", "width": 8, "weights_folder": "/etc"},
        {"name": "segresnet", "width": 8, "options": {"act": "relu"}},
        {"name": "segresnet", "width": 8, "options": {"spatial_dims": 3}},
        {"name": "segresnet", "width": 8, "options": {"norm_name": "x" * 10**6}},
        {"name": "unet", "width": 8, "options": {"channels": [8] * 9}},
        {"name": "unet", "width": 8, "options": {"channels": [10**9, 8]}},
        {"name": "swinunetr", "width": 12, "options": {"window_size": 64}},
        {"name": "sanet", "width": 8, "options": {"depth": 3}},
    ],
)
def test_a_record_that_is_none_is_refused_in_a_line(record: object) -> None:
    with pytest.raises(NotDescribed):
        read(record)
    with pytest.raises(PeerRefused) as raised:
        personal_schema(record, HERE, WIDE, "south")
    assert raised.value.reason == "bad_network" and 0 < len(raised.value.detail) <= 300


def test_a_networks_options_that_do_not_fit_together_are_a_refusal() -> None:
    record = {"name": "segresnet", "width": 8, "options": {"blocks_down": [1, 1], "blocks_up": [1, 1, 1]}}
    with pytest.raises(PeerRefused, match="bad_network"):
        personal_schema(record, HERE, WIDE, "south")


def test_a_network_whose_prediction_is_smaller_than_its_patch_is_a_refusal() -> None:
    """A first stride of 2 that nothing takes back: its validation would end the worker, again and again."""
    options = {"kernel_size": [3, 3, 3], "strides": [2, 2, 2], "upsample_kernel_size": [2, 2]}
    record = {"name": "dynunet", "width": 2, "options": {**options, "filters": [2, 4, 8]}}
    record["options"]["deep_supervision"] = False
    with pytest.raises(PeerRefused, match=r"bad_network.*the shape \(1, 2, 32, 32\), not \(1, 2, 64, 64\)"):
        personal_schema(record, HERE, WIDE, "south")


def test_a_personal_model_that_others_cannot_build_stays_here() -> None:
    assert own_record(settings()) is None
    for own in ({"name": "segresnet", "norm": "batch"}, {"name": "segresnet", "options": {"act": "relu"}}):
        with pytest.raises(NotDescribed):
            own_record(settings(own={"width": 4, **own}))


CHOICES: dict[str, Any] = {
    "channels": lambda draw, n: [draw.choice((1, 4, 16, 64, 1024)) for _ in range(n)],
    "filters": lambda draw, n: [draw.choice((1, 4, 16, 64, 1024)) for _ in range(n)],
    "strides": lambda draw, n: [draw.randint(1, 4) for _ in range(n)],
    "upsample_kernel_size": lambda draw, n: [draw.randint(1, 4) for _ in range(n - 1)],
    "blocks_down": lambda draw, n: [draw.randint(1, 8) for _ in range(n)],
    "blocks_up": lambda draw, n: [draw.randint(1, 8) for _ in range(n - 1)],
    "depths": lambda draw, n: [draw.randint(1, 8) for _ in range(4)],
    "num_heads": lambda draw, n: [draw.choice((1, 2, 3, 6, 12, 64)) for _ in range(4)],
    "upsample_mode": lambda draw, n: draw.choice(("nontrainable", "deconv")),
}
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 2**70, 1e308, float("inf"), "", "x" * 5000, b"\xff", [], [[[]]], {}, {"a": {}},
    [None] * 99, {1: 2}, (1, 2), object(),
)  # fmt: skip


def drawn(draw: random.Random) -> object:
    """A record: mostly one that might be, with odd things here and there."""
    name = draw.choice(tuple(OPTIONS))
    levels = draw.randint(1, 8)
    plain = lambda draw, n: draw.choice((draw.randint(0, 8), draw.random() < 0.5, [draw.randint(1, 7)] * n))  # noqa: E731
    fields = [f.name for f in dataclasses.fields(OPTIONS[name])]
    taken = {f: CHOICES.get(f, plain)(draw, levels) for f in fields if draw.random() < 0.4}
    record: dict[Any, Any] = {
        "name": name,
        "width": draw.choice((1, 2, 8, 12, 24, 48, 96, 300, 1024)),
        "norm": draw.choice(("instance", "group")),
        "options": taken,
    }
    for place in (record, taken):
        if draw.random() < 0.15:
            place[draw.choice((*place, "more", 7))] = draw.choice(ODD)
    return draw.choice(ODD) if draw.random() < 0.05 else record


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
def test_whatever_a_record_says_it_is_taken_or_refused_in_bounded_time_and_memory(seed: int) -> None:
    draw, here = random.Random(seed), settings(3, patch=32)
    bounds = bounds_of(here, MAX_PARAMETERS)
    before_kib, taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    for _ in range(200):
        record, began = drawn(draw), time.process_time()
        try:
            cost = personal_schema(record, here, bounds, "south").cost
        except PeerRefused as e:
            assert e.reason in ("bad_network", "network_too_large") and len(e.detail) <= 300, record
        else:
            taken += 1
            pairs = zip(dataclasses.astuple(cost), dataclasses.astuple(bounds), strict=True)
            assert all(a <= b for a, b in pairs), record
        assert time.process_time() - began < 10, (seed, record)
    assert taken > 10, "some are what they say"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 300 << 10, seed


def test_nothing_of_it_is_made_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the large one that is refused: its first tensors would fill any machine."""
    made: list[torch.device] = []
    build = dry_run.make

    def spied(*args: Any, **kwargs: Any) -> Any:
        net = build(*args, **kwargs)
        made.extend(t.device for t in net.state_dict().values())
        return net

    monkeypatch.setattr(dry_run, "make", spied)
    with pytest.raises(PeerRefused, match="network_too_large"):
        personal_schema({"name": "segresnet", "width": 1024}, HERE, WIDE, "south")
    assert {device.type for device in made} == {"meta"}
