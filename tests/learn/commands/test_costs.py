"""What `gossipctl check` says a round will take."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gossipseg.algos.params import DittoParams, FedAvgParams, GcmlParams, LocalParams
from gossipseg.errors import LocalError
from gossipseg.learn.commands import costs, peak
from gossipseg.learn.commands.peak import with_peak
from gossipseg.learn.data import dataset
from gossipseg.learn.data.cases import Case
from gossipseg.learn.data.datalist import load_cases
from gossipseg.learn.engine.precision import choose_compute
from gossipseg.learn.params import DeviceParams
from gossipseg.learn.settings import read_settings
from tests.learn.harness import make_spec, write_png_site


def pace(
    folder: Path,
    algorithm: Any = None,
    *,
    cache: bool = True,
    own: dict[str, Any] | None = None,
    **training: Any,
) -> dict[str, Any]:
    spec = make_spec(
        folder,
        folder / "state",
        algorithm=algorithm or LocalParams(),
        training=training,
        personal_network=own,
    )
    spec = dataclasses.replace(spec, data={**spec.data, "cache": cache})
    settings = read_settings(spec)
    found = costs.time_round(settings, load_cases(settings.data, spec.site), choose_compute(settings.device))
    assert found is not None
    return found


def test_cases_that_are_not_kept_are_read_in_the_steps_that_are_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_png_site(tmp_path)
    read: list[str] = []

    def counted(case: Case, *rest: Any, load: Any = dataset.load_item) -> Any:
        read.append(case.id)
        return load(case, *rest)

    monkeypatch.setattr(dataset, "load_item", counted)
    pace(tmp_path)
    assert len(read) == len(set(read)) == 3  # two for training, one for validation
    read.clear()
    pace(tmp_path, cache=False)
    assert len(read) == 2 * (1 + costs.TIMED_STEPS) + 1


def test_all_models_that_a_site_trains_take_a_step_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that holds one model must not be told that it holds two."""
    trained: list[set[int]] = []
    step = costs.train_step

    def one_second(work: Callable[[], object], compute: Any) -> float:
        trained.append(set())
        work()
        return 1.0

    def spied(learners: Any, *args: Any) -> Any:
        trained[-1].add(id(learners["local"].model))
        return step(learners, *args)

    write_png_site(tmp_path)
    monkeypatch.setattr(costs, "_seconds", one_second)
    monkeypatch.setattr(costs, "train_step", spied)
    cases = pace(tmp_path)["validation_cases"]
    for algorithm, models in ((None, 1), (DittoParams(), 2), (GcmlParams(), 2)):
        trained.clear()
        assert pace(tmp_path, algorithm)["round_s"] == 4 + models * cases
        assert [len(one) for one in trained[:-1]] == [models] * (1 + costs.TIMED_STEPS)


def test_a_step_of_both_models_takes_more_memory_and_where_one_will_do_it_is_said(tmp_path: Path) -> None:
    """Under GCML one will not do; and a device whose peak nobody knows has none."""
    write_png_site(tmp_path)
    found = {name: pace(tmp_path, params, **more) for name, (params, more) in ALGORITHMS.items()}
    assert [(p["models"], p["one_model_will_do"]) for p in found.values()] == [
        (2, False),
        (2, True),
        (1, False),
    ]
    assert all(p["step_bytes"] is None or p["step_bytes"] >= 0 for p in found.values())


def test_where_memory_lacks_under_gcml_the_way_to_one_model_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*args: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    write_png_site(tmp_path)
    monkeypatch.setattr(costs, "train_step", out_of_memory)
    with pytest.raises(LocalError, match=r"name: gossip_average and training\.personal: none"):
        pace(tmp_path, GcmlParams())


ALGORITHMS: dict[str, Any] = {
    "gcml": (GcmlParams(), {}),
    "fedavg": (FedAvgParams(), {"personal": "always"}),
    "local": (LocalParams(), {}),
}


def test_the_peak_is_of_the_work_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compute = choose_compute(DeviceParams(device="cpu"))
    size = 64 << 20
    kept, growth = with_peak(lambda: len(bytearray(b"x") * size), compute)
    assert kept == size
    if growth is not None:  # where there is /proc
        assert 0.9 * size <= growth <= 1.5 * size
        assert with_peak(lambda: None, compute)[1] < size / 8, "the peak before is forgotten"  # type: ignore[operator]
    monkeypatch.setattr(peak, "_RESET", tmp_path / "no" / "such")
    assert with_peak(lambda: 3, compute) == (3, None)


def test_a_network_of_the_personal_models_own_is_timed_and_named_where_memory_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_png_site(tmp_path)
    own = {"name": "segresnet", "width": 4}
    seen: list[tuple[str, str]] = []
    step, score = costs.train_step, costs.score

    def one_second(work: Callable[[], object], compute: Any) -> float:
        work()
        return 1.0

    def trained(learners: Any, *args: Any) -> Any:
        seen.append(("step", type(learners["local"].model.network).__name__))
        return step(learners, *args)

    def scored(net: Any, *args: Any) -> Any:
        seen.append(("case", type(net.network).__name__))
        return score(net, *args)

    monkeypatch.setattr(costs, "_seconds", one_second)
    monkeypatch.setattr(costs, "train_step", trained)
    monkeypatch.setattr(costs, "score", scored)
    assert pace(tmp_path, GcmlParams(), own=own)["validation_case_s"] == 2
    assert seen[:2] == [("step", "SANet"), ("step", "SegResNet")]
    assert seen[-2:] == [("case", "SANet"), ("case", "SegResNet")]

    def full(*args: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(costs, "train_step", full)
    with pytest.raises(
        LocalError, match=r"through sanet and segresnet.*smaller personal_network in site.yaml"
    ):
        pace(tmp_path, GcmlParams(), own=own)
