"""Personal models that travel: this site's own on its way out, and peers' on their way in.

Rarely, in eight bits whatever the wire's type, and never mixed: a peer's personal model only predicts beside
this site's own models. It is checked as any model that comes, but for the likeness: models that never met may
have grown far apart. One with a network of its own has no counterpart here: its values are bounded instead.

Where a part of the network stays at its site (the norms under FedBN, the private parts of FedOAP's and
FedSCA's networks), a personal model is of no use without it: none travels. Batch norm's running statistics
never leave a site either, but the receiver can measure them on images of its own.

One with a network of its own says in its file's metadata which network that is (described_models.py).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from gossipseg.algos.base import PRIVATE_BUFFERS, Algorithm, Weights
from gossipseg.errors import DiskFull, LocalError, PeerRefused
from gossipseg.learn import protocol
from gossipseg.learn.deploy.peers import PeerModel
from gossipseg.learn.engine.dry_run import Cost
from gossipseg.learn.engine.model_state import ModelState
from gossipseg.learn.engine.run_state import RunState
from gossipseg.learn.exchange.admission import Admission
from gossipseg.learn.exchange.described_models import bounds_of, own_record, personal_schema, sent
from gossipseg.learn.exchange.global_model import everything
from gossipseg.learn.exchange.norm_recalibration import BATCHES, reestimate
from gossipseg.learn.exchange.wire_format import INT8, all_finite, export_wire, load_incoming, wire_schema
from gossipseg.learn.privacy.clip_and_noise import Release
from gossipseg.learn.settings import WorkerSettings
from gossipseg.nets.params.described import NotDescribed
from gossipseg.store import NETWORK, BadSafetensors, read_safetensors

LONGEST_RECORD = 4096
"""Characters of a record in a file's metadata."""
LARGEST_VALUE = 1e4
"""Largest value of a network of its own; trained ones have a few units at most (1.8 in the study)."""


class PersonalExchange:
    """A site's part in it. `own`: the personal model; `shared`: the one of the federation's network."""

    def __init__(self, run: RunState, algorithm: Algorithm, own: ModelState, shared: ModelState) -> None:
        self._run, self._own, self._shared = run, own, shared
        spec, self._privacy = run.settings.spec, run.settings.privacy
        self._whole = all(algorithm.is_shared(name) for name in shared.weights() if travels(name))
        self._record, self._hidden = _record_of(run.settings)
        self._bounds: Cost | None = None
        self._admission = Admission(run.settings.admission, averages=False)
        self.release = Release(self._privacy, f"{spec.site}/personal", self._of(own.weights()))

    @property
    def refusal(self) -> str:
        """Why this site's own is never sent: `private`, `private_part`, `partial_labels`, `private_network`;
        "" where it may be."""
        if self._privacy.dp is not None:
            return "private"
        if not self._whole:
            return "private_part"
        if not self._run.settings.annotates_all:
            return "partial_labels"
        return "private_network" if self._hidden else ""

    @property
    def takes(self) -> bool:
        """Whether a peer's is of use here, but for the number of validation patients."""
        return self._whole and self._run.settings.annotates_all

    @property
    def schema(self) -> protocol.WireSchema:
        """What a file of a personal model of the federation's network holds."""
        return wire_schema(self._shared.weights(), travels, INT8)

    def _of(self, weights: Weights) -> dict[str, Tensor]:
        """What of a personal model travels, at most."""
        return dict(weights) if self._record is None else sent(weights)

    def export(self) -> protocol.PersonalExported:
        """Write the average (EMA) to outbox/, clipped where the settings ask for it. Never where it is
        private."""
        spec, history, cases = self._run.settings.spec, self._run.history, self._run.site.cases
        round, weights = history.round, self._of(self._own.ema.state_dict())
        if self.refusal:
            return protocol.PersonalExported(None, round, self.refusal)
        if not self._own.averaged_rounds:
            return protocol.PersonalExported(None, round, "not_ready")
        if not all_finite(weights):
            return protocol.PersonalExported(None, round, "not_finite")
        path = Path(spec.state_dir) / "outbox" / f"personal-{round}.safetensors"
        metadata = {"site": spec.site, "round": round, "steps": history.own_steps, "cases": cases}
        if self._record is not None:
            metadata[NETWORK] = json.dumps(self._record, sort_keys=True)
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
        path, text = Path(file.path), _described_in(file)
        if text is None:
            own = self._shared.ema.state_dict()
            weights = _on_cpu(load_incoming(path, own, travels, INT8, file.site, self._admission))
            if any(not travels(name) for name in own):
                weights = self._measured(weights)
            return PeerModel(file.site, file.hash, file.round, weights)
        model = personal_schema(_parsed(text, file.site), self._run.settings, self._bound(), file.site)
        weights = _on_cpu(load_incoming(path, model.reference, everything, INT8, file.site))
        check_size(weights, file.site)
        return PeerModel(file.site, file.hash, file.round, weights, model.record)

    def _measured(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights with running statistics of this site's training images."""
        run, net = self._run, copy.deepcopy(self._shared.ema)
        net.load_state_dict(dict(weights), strict=False)
        reestimate(net, lambda: (b["image"] for _, b in run.site.batches(0, 0, BATCHES)), run.compute)
        return _on_cpu(net.state_dict())

    def _bound(self) -> Cost:
        """The most that a peer's network may take here; counted once."""
        if self._bounds is None:
            settings = self._run.settings
            self._bounds = bounds_of(settings, settings.inference.max_parameters)
        return self._bounds


def _record_of(settings: WorkerSettings) -> tuple[Mapping[str, Any] | None, bool]:
    """The record of the personal model's own network, and whether there is none that others could read."""
    try:
        return own_record(settings), False
    except NotDescribed:
        return None, True


def _described_in(file: protocol.PersonalFile) -> str | None:
    """The record in the file's metadata; None: it is of the federation's network. Raises PeerRefused."""
    try:
        return read_safetensors(Path(file.path)).metadata.get(NETWORK)
    except (BadSafetensors, OSError) as e:
        raise PeerRefused(file.site, "unreadable", str(e)) from e


def _parsed(text: str, frm: str) -> object:
    """The record as plain values. Raises PeerRefused."""
    try:
        if len(text) > LONGEST_RECORD:
            raise ValueError(f"its record has {len(text)} characters")
        return json.loads(text)
    except (ValueError, RecursionError) as e:
        raise PeerRefused(frm, "bad_network", str(e)[:200]) from None


def _on_cpu(weights: Weights) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in weights.items()}


def travels(name: str) -> bool:
    """Whether the named tensor of a personal model travels."""
    return name.rpartition(".")[2] not in PRIVATE_BUFFERS


def check_size(weights: Weights, frm: str) -> None:
    """A network of its own has no counterpart here to be measured by. Raises PeerRefused."""
    for name, tensor in weights.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        if (most := float(tensor.abs().max())) > LARGEST_VALUE:
            detail = f"{name}: its largest value is {most:.3g}, bound {LARGEST_VALUE:.3g}"
            raise PeerRefused(frm, "norm_exploded", detail)
