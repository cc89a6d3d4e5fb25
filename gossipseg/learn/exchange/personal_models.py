"""Personal models that travel: this site's own on its way out, and peers' on their way in.

Rarely, in eight bits whatever the wire's type, and never mixed: a peer's personal model only predicts beside
this site's own models. It is checked as any model that comes, but for the likeness: models that never met may
have grown far apart.

Where a part of the network stays at its site (the norms under FedBN, the private parts of FedOAP's and
FedSCA's networks), a personal model is of no use without it: none travels. Batch norm's running statistics
never leave a site either, but the receiver can measure them on images of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from gossipseg.algos.base import PRIVATE_BUFFERS, Algorithm
from gossipseg.errors import DiskFull, LocalError
from gossipseg.learn import protocol
from gossipseg.learn.deploy.peers import PeerModel
from gossipseg.learn.engine.model_state import ModelState
from gossipseg.learn.engine.run_state import RunState
from gossipseg.learn.exchange.admission import Admission
from gossipseg.learn.exchange.norm_recalibration import BATCHES, reestimate
from gossipseg.learn.exchange.wire_format import INT8, all_finite, export_wire, load_incoming, wire_schema
from gossipseg.learn.privacy.clip_and_noise import Release


class PersonalExchange:
    """A site's part in it. `own`: the personal model."""

    def __init__(self, run: RunState, algorithm: Algorithm, own: ModelState) -> None:
        self._run, self._own = run, own
        spec, self._privacy = run.settings.spec, run.settings.privacy
        self._whole = all(algorithm.is_shared(name) for name in own.weights() if travels(name))
        self._admission = Admission(run.settings.admission, averages=False)
        self.release = Release(self._privacy, f"{spec.site}/personal", own.weights())

    @property
    def refusal(self) -> str:
        """Why this site's own is never sent: `private`, `private_part`; "" where it may be."""
        if self._privacy.dp is not None:
            return "private"
        return "" if self._whole else "private_part"

    @property
    def takes(self) -> bool:
        """Whether a peer's is of use here, but for the number of validation patients."""
        return self._whole

    @property
    def schema(self) -> protocol.WireSchema:
        """What a file of a personal model holds."""
        return wire_schema(self._own.weights(), travels, INT8)

    def export(self) -> protocol.PersonalExported:
        """Write the average (EMA) to outbox/, clipped where the settings ask for it. Never where it is
        private."""
        spec, history, cases = self._run.settings.spec, self._run.history, self._run.site.cases
        round, weights = history.round, self._own.ema.state_dict()
        if self.refusal:
            return protocol.PersonalExported(None, round, self.refusal)
        if not self._own.averaged_rounds:
            return protocol.PersonalExported(None, round, "not_ready")
        if not all_finite(weights):
            return protocol.PersonalExported(None, round, "not_finite")
        path = Path(spec.state_dir) / "outbox" / f"personal-{round}.safetensors"
        metadata = {"site": spec.site, "round": round, "steps": history.own_steps, "cases": cases}
        try:
            told = self.release.of(weights, round)
            export_wire(path, told, travels, INT8, metadata)
        except LocalError as e:
            reason = "disk_full" if isinstance(e, DiskFull) else "not_written"
            return protocol.PersonalExported(None, round, reason)
        self.release.set_reference(told)
        return protocol.PersonalExported(protocol.Export(str(path), cases, history.own_steps, None), round)

    def admit(self, file: protocol.PersonalFile) -> PeerModel:
        """Read and check a peer's; what batch norm measures is measured here. Raises PeerRefused."""
        found: dict[str, Tensor] = load_incoming(
            Path(file.path), self._own.ema.state_dict(), travels, INT8, file.site, self._admission
        )
        weights = {name: tensor.detach().cpu() for name, tensor in found.items()}
        if any(not travels(name) for name in self._own.weights()):
            weights = self._measured(weights)
        return PeerModel(file.site, file.hash, file.round, weights)

    def _measured(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights with running statistics of this site's training images."""
        run, net = self._run, copy.deepcopy(self._own.ema)
        net.load_state_dict(dict(weights), strict=False)
        reestimate(net, lambda: (b["image"] for _, b in run.site.batches(0, 0, BATCHES)), run.compute)
        return {name: tensor.detach().cpu() for name, tensor in net.state_dict().items()}


def travels(name: str) -> bool:
    """Whether the named tensor of a personal model travels."""
    return name.rpartition(".")[2] not in PRIVATE_BUFFERS
