"""One life of a worker: prepare, report, run the rounds the daemon asks for, checkpoint each."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import msgspec
import torch

from gossipseg.errors import AlreadyRunning, LocalError
from gossipseg.learn import protocol
from gossipseg.learn.data.dataset import Dataset
from gossipseg.learn.data.trained_cases import TrainedCases
from gossipseg.learn.engine.checkpoint import contract_of, load_checkpoint, save_checkpoint
from gossipseg.learn.engine.precision import choose_compute
from gossipseg.learn.engine.sites import open_site
from gossipseg.learn.params import WorkerSpec
from gossipseg.learn.settings import read_settings
from gossipseg.learn.training.trainer import Trainer
from gossipseg.learn.worker.link import DaemonLink, StopRequested
from gossipseg.learn.worker.tensorboard import Scalars
from gossipseg.store import Checkpoints, DirectoryLock, sweep_temporaries

LOCK_PATIENCE_S = 10.0
"""A killed daemon's worker lets go of its lock a moment after the new daemon's worker asks for it."""

log = logging.getLogger(__name__)


def serve(link: DaemonLink, spec: WorkerSpec) -> None:
    """Train as the daemon says until it says stop. Raises ConfigError, DataError, LocalError."""
    state_dir = Path(spec.state_dir)
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = DirectoryLock(state_dir / "worker.lock")
    _acquire(lock, link)
    try:
        WorkerSession(link, spec).run()
    finally:
        lock.release()


def _acquire(lock: DirectoryLock, link: DaemonLink) -> None:
    deadline_s = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            return lock.acquire()
        except AlreadyRunning:
            if time.monotonic() > deadline_s:
                raise
        link.check()
        link.report(lambda: protocol.Preparing("waiting for the previous worker to end", 0.0))
        time.sleep(0.1)


class WorkerSession:
    """A trainer, its checkpoints and the link to the daemon."""

    def __init__(self, link: DaemonLink, spec: WorkerSpec) -> None:
        self._link, self._spec = link, spec
        self._scalars = Scalars(Path(spec.state_dir)) if spec.tensorboard else None
        settings = read_settings(spec)
        compute = choose_compute(settings.device)
        if settings.device.threads:
            torch.set_num_threads(settings.device.threads)
        if compute.device.type == "cuda":
            # Patches have one size: the search for the fastest convolution pays off after a few steps.
            torch.backends.cudnn.benchmark = True
        data = Dataset.open(spec, self._preparing)
        self._trainer = Trainer(open_site(settings, data, compute, self._preparing), link.report, link.gate)
        self._trainer.run.between_steps = self._swap_orders
        self._splits_from = data.splits.origin.text
        self._trained_on = TrainedCases(Path(spec.state_dir), data.splits)
        self._contract = contract_of(settings, self._trainer.network_signature)
        self._store = Checkpoints(Path(spec.state_dir) / "checkpoint", keep=2)
        self._warning = ""
        self._unsaved = False
        """Whether the newest checkpoint could not be written."""

    def run(self) -> None:
        """Ready, then one round an order. Returns when asked to stop."""
        try:
            self._begin()
            self._link.send(self._ready())
            if self._trainer.choice_is_stale:
                self._choose_again()
            while True:
                match self._link.order():
                    case protocol.StartRound() as order:
                        self._round(order)
                    case protocol.Aggregate() as order:
                        self._aggregate(order)
                    case protocol.ExportPersonal():
                        self._link.send(self._trainer.export_personal(protocol.ExportPersonal()))
                    case protocol.HoldPersonal() as order:
                        self._hold(order)
                    case protocol.ExportSnapshot() | protocol.AdmitSnapshot() | protocol.ApplySwap() as order:
                        self._swap(order)
                    case _:
                        raise LocalError("the daemon configured this worker twice; restart the daemon.")
        except StopRequested:
            within_a_round = self._trainer.history.step > 0
            if self._trainer.resumable and (within_a_round or self._unsaved):
                save_checkpoint(self._store, self._trainer.state(), self._contract)
        finally:
            if self._scalars is not None:
                self._scalars.close()

    def _begin(self) -> None:
        """Go on from the newest checkpoint, or start with the test score and the first checkpoint."""
        self._store.prepare()
        state, self._warning = load_checkpoint(self._store, self._contract)
        if state is not None:
            self._trainer.load(state)
        elif self._spec.report_test:
            self._trainer.score_test_at_start(self._preparing)
        if state is None:
            self._warning = self._checkpoint()
        self._warning = "; ".join(filter(None, [self._warning, self._trained_on.warning]))
        if self._warning:
            log.warning("%s", self._warning)
        self._sweep_outbox()

    def _choose_again(self) -> None:
        """A model that predicted is gone, or the cases are others: what is told must be of now."""
        done = self._trainer.choose_again()
        self._link.send(msgspec.structs.replace(done, warning=self._checkpoint()))

    def _sweep_outbox(self) -> None:
        """Remove exports that a daemon never took; the newest may still be on its way into the store.

        So are the halves of files that a killed worker was writing.
        """
        outbox = Path(self._spec.state_dir) / "outbox"
        sweep_temporaries(outbox)
        for file in outbox.glob("*.safetensors"):
            if file.name != f"round-{self._trainer.history.round}.safetensors":
                file.unlink(missing_ok=True)

    def _round(self, order: protocol.StartRound) -> None:
        done = self._trainer.run_round(order)
        told = [self._warning, done.warning, self._checkpoint(), self._trained_on.note()]
        warning = "; ".join(filter(None, told))
        self._warning = self._trained_on.warning
        if self._scalars is not None:
            self._scalars.round(done, self._trainer.model_state.learner.optimizer.param_groups[0]["lr"])
        self._link.send(msgspec.structs.replace(done, warning=warning))

    def _aggregate(self, order: protocol.Aggregate) -> None:
        activity = f"combining {len(order.updates)} updates"
        try:
            # Told of all the while: a worker that says nothing for long is taken for stuck.
            done = self._trainer.aggregate(order, lambda: self._preparing(activity, 0.0))
        except LocalError as e:  # no room for it: another site may have
            log.warning("the global model of round %d was not made: %s", order.round, e)
            sites = [update.site for update in order.updates]
            done = protocol.AggregateDone(order.round, order.attempt, None, sites, {}, "local", str(e))
        self._link.send(done)

    def _swap_orders(self) -> None:
        """Carry out what has been ordered of a swap since the last step."""
        while (order := self._link.swap_order()) is not None:
            self._swap(order)

    def _swap(self, order: protocol.SwapOrder) -> None:
        match order:
            case protocol.ExportSnapshot():
                self._link.send(self._trainer.export_snapshot(order))
            case protocol.AdmitSnapshot():
                self._link.send(self._trainer.admit_snapshot(order))
            case protocol.ApplySwap():
                self._apply(order)

    def _apply(self, order: protocol.ApplySwap) -> None:
        """Apply, checkpoint, report. A swap that no checkpoint holds is taken back, as a restart would do."""
        before, last = self._trainer.state(), self._trainer.history.last_swap
        done = self._trainer.apply_swap(order)
        if self._trainer.history.last_swap != last and (trouble := self._checkpoint()):
            self._trainer.load(before)
            done = msgspec.structs.replace(done, reason="not_saved", detail=trouble)
        self._link.send(done)

    def _hold(self, order: protocol.HoldPersonal) -> None:
        """Take peers' personal models in, checkpoint, report: what predicts is read from the checkpoint."""
        before = self._trainer.held_personal
        done = self._trainer.hold_personal(order)
        if done.chosen or self._unsaved or self._trainer.held_personal != before:
            done = msgspec.structs.replace(done, warning=self._checkpoint())
        self._link.send(done)

    def _checkpoint(self) -> str:
        """Write a checkpoint; "" or why it failed. Training goes on: the one before stays valid."""
        try:
            save_checkpoint(self._store, self._trainer.state(), self._contract)
        except LocalError as e:
            log.warning("checkpoint not written: %s", e)
            self._unsaved = True
            return f"checkpoint not written: {e}"
        self._unsaved = False
        return ""

    def _preparing(self, activity: str, fraction: float) -> None:
        self._link.check()
        self._link.report(lambda: protocol.Preparing(activity, fraction))

    def _ready(self) -> protocol.Ready:
        trainer, history = self._trainer, self._trainer.history
        mix = trainer.mix
        return protocol.Ready(
            round=history.round,
            steps=history.steps,
            own_steps=history.own_steps,
            ahead=history.ahead,
            cases=trainer.site.cases,
            network_signature=trainer.network_signature,
            tensors=trainer.schema,
            parameters=sum(p.numel() for p in trainer.model_state.model.parameters()),
            device=trainer.compute.name,
            amp=trainer.compute.amp,
            splits=trainer.site.splits,
            splits_from=self._splits_from,
            last_visit=history.last_visit,
            visits=history.visits,
            dice_val=history.dice_val,
            dice_test_start=history.dice_test_start,
            dice_test=history.dice_test,
            initial_hash=trainer.initial_hash,
            last_global=history.last_global,
            update_tensors=trainer.update_schema,
            warning=self._warning,
            spent=trainer.private.spent if trainer.private is not None else None,
            last_swap=protocol.Swap(*history.last_swap) if history.last_swap else None,
            deployed=mix.name if mix is not None else "",
            deployed_reason=mix.reason if mix is not None else "",
            personal_tensors=trainer.personal_schema,
            personal_refusal=trainer.personal_refusal,
            takes_personal=trainer.takes_personal,
        )
