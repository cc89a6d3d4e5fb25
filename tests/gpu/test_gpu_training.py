"""What only a CUDA device can show: precision, memory format, two models in memory, resuming elsewhere."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch

from gossipseg.algos.params import GcmlParams, LocalParams
from gossipseg.learn import protocol
from gossipseg.learn.engine.precision import choose_compute
from gossipseg.learn.params import DeviceParams
from tests.learn.harness import make_spec, make_trainer, same, worker, write_nifti_site, write_png_site

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

PRECISIONS = ("off", "bf16", "fp16")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_png_site(tmp_path_factory.mktemp("site"))


def on(device: str, amp: str = "off", **more: Any) -> dict[str, Any]:
    return {"device": device, "amp": amp, "threads": None, **more}


def through_a_file(state: dict[str, Any]) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=True)


def test_auto_finds_the_device_and_a_precision() -> None:
    compute = choose_compute(DeviceParams())
    assert compute.device == torch.device("cuda", 0)
    assert compute.amp == ("bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16")
    assert compute.channels_last and torch.cuda.get_device_name(0) in compute.name


@pytest.mark.parametrize("amp", PRECISIONS)
@pytest.mark.parametrize("channels_last", (True, False))
def test_a_round_and_a_visit_in_every_precision(
    data: Path, tmp_path: Path, amp: str, channels_last: bool
) -> None:
    device = on("cuda", amp, channels_last=channels_last)
    trainer = make_trainer(make_spec(data, tmp_path, device=device, training={"steps_per_round": 12}))
    first = trainer.run_round(protocol.StartRound(1, export=True))
    second = trainer.run_round(protocol.StartRound(2, protocol.Visit(first.export.path, "v", "south", 12, 2)))
    third = trainer.run_round(protocol.StartRound(3))
    assert second.visit.outcome == "merged"
    losses = [d.loss for d in (first, second, third)]
    assert all(loss is not None for loss in losses) and losses[2] < losses[0]
    assert all(p.dtype is torch.float32 and p.is_cuda for p in trainer.model_state.model.parameters())
    assert trainer.model_state.learner.scaler.is_enabled() == (amp == "fp16")


def test_convolutions_are_channels_last(data: Path, tmp_path: Path) -> None:
    trainer = make_trainer(make_spec(data, tmp_path, device=on("cuda"), network={"width": 4}))
    trainer.run_round(protocol.StartRound(1))
    weights = [p for p in trainer.model_state.model.parameters() if p.dim() == 4 and min(p.shape) > 1]
    assert weights and all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
    step, batch = next(iter(trainer.site.batches(2, 0, 1)))
    assert step == 0 and batch["image"].is_cuda


def test_three_dimensions(tmp_path: Path) -> None:
    data = write_nifti_site(tmp_path / "site", cases=5)
    spec = make_spec(data, tmp_path / "n", dims=3, device=on("cuda", "auto"), training={"batch_size": 1})
    trainer = make_trainer(spec)
    export = trainer.run_round(protocol.StartRound(1, export=True)).export
    done = trainer.run_round(protocol.StartRound(2, protocol.Visit(export.path, "v", "south", 4, 1)))
    assert done.visit.outcome == "merged" and done.dice_val is not None


def test_precision_changes_the_loss_only_a_little(data: Path, tmp_path: Path) -> None:
    losses = {}
    for amp in PRECISIONS:
        spec = make_spec(data, tmp_path, device=on("cuda", amp), training={"steps_per_round": 1})
        losses[amp] = make_trainer(spec).run_round(protocol.StartRound(1)).loss
    assert losses["bf16"] == pytest.approx(losses["off"], rel=0.05)
    assert losses["fp16"] == pytest.approx(losses["off"], rel=0.02)


def test_the_device_agrees_with_the_cpu(data: Path, tmp_path: Path) -> None:
    losses = []
    for device in ("cpu", "cuda"):
        spec = make_spec(
            data, tmp_path, device=on(device), training={"steps_per_round": 1}, network={"dropout": 0.0}
        )
        losses.append(make_trainer(spec).run_round(protocol.StartRound(1)).loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


@pytest.mark.parametrize(("frm", "to"), [("cuda", "cpu"), ("cpu", "cuda"), ("cuda", "cuda")])
def test_a_checkpoint_goes_on_on_another_device(data: Path, tmp_path: Path, frm: str, to: str) -> None:
    here = make_trainer(make_spec(data, tmp_path, algorithm=GcmlParams(), device=on(frm)))
    export = here.run_round(protocol.StartRound(1, export=True)).export
    here.run_round(protocol.StartRound(2, protocol.Visit(export.path, "v", "south", 4, 2)))
    state = through_a_file(here.state())
    there = make_trainer(make_spec(data, tmp_path, algorithm=GcmlParams(), device=on(to)))
    there.load(state)
    parts = ("model", "ema", "optimizer", "history", "guard")
    after = there.state()
    assert all(same(after[part], state[part]) for part in parts)
    assert all(p.device.type == to for p in there.model_state.model.parameters())
    assert all(
        t.device.type == to for s in there.model_state.learner.optimizer.state.values() for t in s.values()
    )
    assert there.run_round(protocol.StartRound(3)).loss is not None


def test_the_scaler_of_fp16_is_checkpointed(data: Path, tmp_path: Path) -> None:
    spec = make_spec(data, tmp_path, algorithm=LocalParams(), device=on("cuda", "fp16"))
    here = make_trainer(spec)
    here.run_round(protocol.StartRound(1))
    here.model_state.learner.scaler.update(512.0)
    there = make_trainer(spec)
    there.load(through_a_file(here.state()))
    assert there.model_state.learner.scaler.get_scale() == 512.0


def test_a_visit_holds_two_models_and_lets_go_of_the_second(data: Path, tmp_path: Path) -> None:
    network, training = {"width": 16}, {"steps_per_round": 3, "batch_size": 1}
    trainer = make_trainer(make_spec(data, tmp_path, device=on("cuda"), network=network, training=training))
    export = trainer.run_round(protocol.StartRound(1, export=True)).export
    bytes_of_model = sum(p.numel() * 4 for p in trainer.model_state.model.parameters())
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    trainer.run_round(protocol.StartRound(2, protocol.Visit(export.path, "v", "south", 3, 2)))
    # The visitor: what came, weights, gradients, two moments; the local one's gradients; activations besides.
    assert torch.cuda.max_memory_allocated() - before > 4 * bytes_of_model
    trainer.model_state.learner.optimizer.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() - before < bytes_of_model


def test_batches_read_ahead_are_the_same_in_the_same_order(data: Path, tmp_path: Path) -> None:
    gpu = make_trainer(make_spec(data, tmp_path, device=on("cuda"))).site
    cpu = make_trainer(make_spec(data, tmp_path, device=on("cpu"))).site
    ahead, plain = list(gpu.batches(3, 5, 40)), list(cpu.batches(3, 5, 40))
    assert [step for step, _ in ahead] == [step for step, _ in plain] == list(range(5, 40))
    assert all(same(a, b) for (_, a), (_, b) in zip(ahead, plain, strict=True))


@pytest.mark.slow
def test_out_of_memory_ends_the_worker_with_a_word(data: Path, tmp_path: Path) -> None:
    free_bytes, _ = torch.cuda.mem_get_info()
    hog = torch.empty(max(0, free_bytes - (1536 << 20)), dtype=torch.uint8, device="cuda")
    training = {"batch_size": 1024, "steps_per_round": 2}
    spec = make_spec(data, tmp_path, device=on("cuda"), training=training, network={"width": 24})
    with worker(spec) as w:
        w.wait(protocol.Ready)
        w.send(protocol.StartRound(1))
        assert w.exit_code() == 1
        assert "out of GPU memory" in w.stderr
        assert not [m for m in w.messages if isinstance(m, protocol.Fatal)]
    del hog
