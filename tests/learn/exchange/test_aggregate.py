"""The coordinator's work on real files: checks, averages, the file it writes, the memory it needs."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gossipseg.algos.base import Algorithm, Combined
from gossipseg.algos.fedavg import FedAvg
from gossipseg.errors import LocalError, PeerRefused
from gossipseg.learn import protocol
from gossipseg.learn.exchange.admission import Admission
from gossipseg.learn.exchange.aggregate import aggregate, open_updates
from gossipseg.learn.exchange.global_model import everything
from gossipseg.learn.exchange.wire_format import export_wire, load_common, wire_schema
from gossipseg.learn.params import MAX_CLAIMED_COUNT, AdmissionParams
from gossipseg.store import SafetensorsHeader, read_safetensors, read_safetensors_header

STATE = {"conv.weight": torch.randn(4, 3), "conv.bias": torch.randn(3), "count": torch.tensor([5])}
SCHEMA = wire_schema(STATE, everything, "float16")


def sent(folder: Path, site: str, cases: int, **changes: Tensor) -> protocol.UpdateFile:
    path = folder / f"{site}.safetensors"
    export_wire(path, {**STATE, **changes}, everything, "float16", {"site": site})
    return protocol.UpdateFile(site, str(path), cases, steps=cases)


def run(
    folder: Path, *files: protocol.UpdateFile, algorithm: Algorithm | None = None
) -> protocol.AggregateDone:
    order = protocol.Aggregate(3, 1, list(files))
    return aggregate(order, algorithm or FedAvg(), SCHEMA, "float16", folder / "outbox")


def test_an_average_of_files_is_the_average_of_models(tmp_path: Path) -> None:
    files = [
        sent(tmp_path, f"s{i}", n, **{"conv.weight": torch.full((4, 3), float(i))})
        for i, n in ((1, 1), (4, 3))
    ]
    done = run(tmp_path, *files)
    assert (done.round, done.attempt, done.contributors, done.refused) == (3, 1, ["s1", "s4"], {})
    assert done.export is not None and (done.export.cases, done.export.steps) == (4, 3)
    found = load_common(Path(done.export.path), "s1", STATE, everything, "float16")
    assert found is not None
    assert torch.equal(found["conv.weight"], torch.full((4, 3), 3.25))
    assert torch.allclose(found["conv.bias"], STATE["conv.bias"]) and found["count"].tolist() == [5]


def test_what_sites_claim_of_themselves_makes_no_common_model_that_everybody_refuses(tmp_path: Path) -> None:
    liars = [sent(tmp_path, site, 2**53 - 1) for site in ("a", "b")]
    export = run(tmp_path, *liars).export
    assert export is not None and export.cases == export.steps == MAX_CLAIMED_COUNT < 2**53


def test_the_file_is_a_good_wire_file_whatever_the_order_of_its_items(tmp_path: Path) -> None:
    """An odd number of two-byte items before four-byte ones must not put these on odd places."""
    done = run(
        tmp_path, sent(tmp_path, "a", 1, **{"conv.weight": torch.full((4, 3), 1e6)}), sent(tmp_path, "b", 1)
    )
    assert done.export is not None
    header = read_safetensors_header(Path(done.export.path))
    assert header["conv.weight"].dtype == "F32"  # half of 1e6 does not fit float16
    assert {n: i.shape for n, i in header.items()} == {n: tuple(t.shape) for n, t in STATE.items()}
    assert load_file(done.export.path)["conv.bias"].dtype == torch.float32


def test_bad_updates_are_left_out_with_their_reasons(tmp_path: Path) -> None:
    good = sent(tmp_path, "good", 2)
    nan = tmp_path / "nan.safetensors"
    save_file(
        {**{n: t.clone() for n, t in STATE.items()}, "conv.bias": torch.tensor([1.0, float("nan"), 0.0])}, nan
    )
    other = tmp_path / "other.safetensors"
    save_file({"conv.weight": torch.zeros(4, 3)}, other)
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(Path(good.path).read_bytes()[:-1])
    files = [protocol.UpdateFile(p.stem, str(p), 5) for p in (nan, other, torn)]
    done = run(tmp_path, good, *files)
    assert done.contributors == ["good"]
    assert done.refused == {"nan": "not_finite", "other": "schema_mismatch", "torn": "unreadable"}
    none = run(tmp_path, *files)
    assert none.export is None and none.reason == "no_update" and "torn" in none.detail


def test_an_update_that_shrinks_while_it_is_read_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk gives less than the header has promised."""
    torn = sent(tmp_path, "torn", 1)

    def truncate(path: Path) -> SafetensorsHeader:
        header = read_safetensors(path)
        if path == Path(torn.path):
            os.truncate(path, path.stat().st_size - 4)
        return header

    monkeypatch.setattr("gossipseg.learn.exchange.aggregate.read_safetensors", truncate)
    done = run(tmp_path, torn, sent(tmp_path, "good", 1))
    assert done.contributors == ["good"] and done.refused == {"torn": "unreadable"}


def test_an_overflow_is_no_common_model(tmp_path: Path) -> None:
    class Exploding(FedAvg):
        def aggregate(self, updates, round):  # type: ignore[no-untyped-def]
            return Combined((n, t.float() * 1e39) for n, t in FedAvg().aggregate(updates, round).tensors)

    done = run(tmp_path, sent(tmp_path, "a", 1), algorithm=Exploding())
    assert done.export is None and done.reason == "not_finite"
    assert not list((tmp_path / "outbox").iterdir())


def test_a_disk_that_fills_up_is_told_of_though_small_tensors_wait_in_a_buffer(tmp_path: Path) -> None:
    """Closing a temporary file writes its buffer once more, in vain: that must not hide the error."""
    state = {f"layer{i:02}.bias": torch.randn(1000) for i in range(40)}
    path = tmp_path / "a.safetensors"
    export_wire(path, state, everything, "float16", {})
    order = protocol.Aggregate(1, 0, [protocol.UpdateFile("a", str(path), 1)])
    schema = wire_schema(state, everything, "float16")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 15, limits[1]))
    try:
        with pytest.raises(LocalError, match="the global model cannot be written"):
            aggregate(order, FedAvg(), schema, "float16", tmp_path / "outbox")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "outbox").iterdir())


def test_the_work_can_be_watched_and_stopped_at_any_tensor(tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    seen: list[int] = []

    def on_tensor() -> None:
        seen.append(1)
        if len(seen) == 8:
            raise Stopped

    order = protocol.Aggregate(1, 0, [sent(tmp_path, "a", 1), sent(tmp_path, "b", 1)])
    with pytest.raises(Stopped):
        aggregate(order, FedAvg(), SCHEMA, "float16", tmp_path / "outbox", on_tensor)
    assert len(seen) == 8  # 3 of each are examined, then the average is under way
    assert not list((tmp_path / "outbox").iterdir())


def test_tensors_for_one_site_alone(tmp_path: Path) -> None:
    path = tmp_path / "common.safetensors"
    tensors = {
        f"{site}:{name}": t.half() + i if t.dim() > 1 else t.clone()
        for i, site in enumerate(("a", "b"))
        for name, t in STATE.items()
    }
    save_file(tensors, path)
    mine = load_common(path, "b", STATE, everything, "float16")
    assert mine is not None and torch.allclose(mine["conv.weight"], STATE["conv.weight"] + 1, atol=5e-3)
    assert load_common(path, "c", STATE, everything, "float16") is None

    for_others = {name: t.half() + 7 if t.dim() > 1 else t.clone() for name, t in STATE.items()}
    save_file(tensors | for_others, path)
    for site, more in (("a", 0), ("b", 1), ("c", 7), ("latecomer", 7)):
        taken = load_common(path, site, STATE, everything, "float16")
        assert taken is not None and taken.keys() == STATE.keys()
        assert torch.allclose(taken["conv.weight"], STATE["conv.weight"] + more, atol=5e-3), site


def test_a_tensor_for_nobody_is_not_taken_for_one_for_everybody(tmp_path: Path) -> None:
    """It would be checked in the other's place, whose shape is then anything."""
    path = tmp_path / "common.safetensors"
    odd = {"conv.weight": torch.zeros(2, 2).half()}
    disguise = {":conv.weight": STATE["conv.weight"].half()}
    save_file({**{n: t for n, t in STATE.items() if n != "conv.weight"}, **odd, **disguise}, path)
    with pytest.raises(PeerRefused, match=r"schema_mismatch"):
        load_common(path, "a", STATE, everything, "float16")


_MEASURE = """
import sys
from gossipseg.algos.fedavg import FedAvg
from gossipseg.learn import protocol
from gossipseg.learn.exchange.aggregate import aggregate
from gossipseg.store import read_safetensors_header
from pathlib import Path
def peak_kib():  # getrusage would tell the peak of whoever started this process, too
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
folder = Path(sys.argv[1])
files = [protocol.UpdateFile(p.stem, str(p), 1) for p in sorted(folder.glob("s*.safetensors"))]
schema = {n: (i.dtype, i.shape) for n, i in read_safetensors_header(Path(files[0].path)).items()}
before = peak_kib()
done = aggregate(protocol.Aggregate(1, 0, files), FedAvg(), schema, sys.argv[2], folder / "outbox")
assert done.export is not None, done
print(peak_kib() - before)
"""


MODEL_KIB = 12 << 10
_NO_HOLES = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "layers"), [("float16", 12), ("int8", 24)])
def test_memory_does_not_grow_with_the_number_of_sites(tmp_path: Path, dtype: str, layers: int) -> None:
    """Models of 12 MB in tensors of half a million values: under three models' worth, however many models.

    What is freed goes back to the system at once, or the peak would tell of holes in the heap: 20 to 39 MB
    for the same work.
    """
    state = {f"layer{i}.weight": torch.randn(1024, 512) for i in range(layers)}
    grown = {}
    for sites in (2, 8):
        folder = tmp_path / str(sites)
        folder.mkdir()
        export_wire(folder / "s0.safetensors", state, everything, dtype, {})
        for i in range(1, sites):
            (folder / f"s{i}.safetensors").hardlink_to(folder / "s0.safetensors")
        command = [sys.executable, "-c", _MEASURE, str(folder), dtype]
        runs = [
            subprocess.run(command, capture_output=True, text=True, check=True, env=_NO_HOLES)
            for _ in range(2)
        ]
        grown[sites] = min(int(run.stdout) for run in runs)  # other work on the machine adds to the peak
    assert grown[2] > 0 and grown[8] < 3 * MODEL_KIB, grown
    assert grown[8] < grown[2] + MODEL_KIB / 2, grown


def test_an_update_with_another_table_of_the_network_is_left_out(tmp_path: Path) -> None:
    """The others' round goes on without it: a global model that holds it would be refused by all."""
    own = {**STATE, "attention.index": torch.tensor([0, 1, 2])}
    theirs = {"a": own, "b": {**own, "attention.index": torch.tensor([0, 1, 99])}}
    files = []
    for site, state in theirs.items():
        export_wire(tmp_path / f"{site}.safetensors", state, everything, "float16", {})
        files.append(protocol.UpdateFile(site, str(tmp_path / f"{site}.safetensors"), 1))
    admission = Admission(AdmissionParams())
    schema = wire_schema(own, everything, "float16")
    good, refused, detail = open_updates(files, schema, examine=lambda site: admission.against(own))
    assert ([update.site for update in good], refused) == (["a"], {"b": "bad_format"})
    assert "attention.index is a table" in detail
