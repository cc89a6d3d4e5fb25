"""Signed manifests: this site's own, and the checks on those of other sites (docs/admin/security.md)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from gossipseg.core.context import Context
from gossipseg.core.effects import SeenManifest
from gossipseg.core.types import Manifest, ModelKind, ModelRef, Proposal, Site, manifest_payload


class ManifestLedger:
    """Signs for this site, and remembers the highest number of each other site."""

    def __init__(
        self, ctx: Context, *, require: bool, sequence: int, floor: int = 0, seen: Iterable[SeenManifest] = ()
    ) -> None:
        """`sequence`: the last number used, from the disk. `floor`: the lowest number to use. The floor comes
        from the clock, so that a site whose state was lost does not repeat numbers."""
        self._ctx, self.require = ctx, require
        self.sequence = max(sequence, floor)
        self.seen = {(s.maker, s.kind): s for s in seen}

    # -------------------------------------------------------------- this site's own

    def sign(self, model: ModelRef, *, run: str = "", attempt: int = 0) -> ModelRef:
        """The model with its manifest, under a fresh number. The caller persists before sending it.

        A manifest that the model has already supplies the shell's part: schema and dtype.
        """
        self.sequence += 1
        dice = model.dice_val if model.dice_val is not None and math.isfinite(model.dice_val) else None
        model = replace(model, dice_val=dice)
        draft = model.manifest or Manifest()
        unsigned = Manifest(
            schema=draft.schema,
            dtype=draft.dtype,
            federation=self._ctx.federation,
            contract=self._ctx.info.contract,
            maker=self._ctx.site,
            kind=model.kind,
            run=run,
            round=model.round,
            attempt=attempt,
            sequence=self.sequence,
            hash=model.hash,
            size_bytes=model.size_bytes,
            steps=model.steps,
            cases=model.cases,
            dice_val=dice,
        )
        signature = self._ctx.sign(manifest_payload(unsigned)).hex()
        return replace(model, manifest=replace(unsigned, signature=signature))

    def renew(self, model: ModelRef) -> ModelRef:
        """The same manifest of a model that this site made, signed with its present key."""
        manifest = model.manifest
        if manifest is None or manifest.maker != self._ctx.site:
            return model
        signature = self._ctx.sign(manifest_payload(manifest)).hex()
        return replace(model, manifest=replace(manifest, signature=signature))

    # -------------------------------------------------------------- the others'

    def fault_of_model(self, frm: Site, model: ModelRef) -> str:
        """Why a model for gossip that `frm` offers is refused; "" if its manifest is valid."""
        return self._fault(model, "model", frm) or self._replayed(model)

    def fault_of_personal(self, frm: Site, model: ModelRef) -> str:
        """Why a personal model that `frm` serves is refused; "" if its manifest is valid."""
        return self._fault(model, "personal", frm) or self._replayed(model)

    def fault_of_update(self, frm: Site, model: ModelRef, run: str, round: int) -> str:
        """Why an update of `frm` for a coordinator is refused; "" if its manifest is valid."""
        return (
            self._fault(model, "update", frm)
            or self._misplaced(model.manifest, run, round)
            or self._replayed(model)
        )

    def fault_of_common(self, proposal: Proposal, run: str, frm: Site | None = None) -> str:
        """Why a global model is refused, whoever forwards it. `frm`: the coordinator that proposes it.

        A later attempt may propose the model of an earlier one. A site that stored another model in between
        must accept it. So within one round its attempt, not its number, says whether it is a replay.
        """
        model, manifest = proposal.model, proposal.model.manifest
        if reason := self._fault(model, "global", None) or self._misplaced(manifest, run, proposal.round):
            return reason
        if manifest is None:
            return ""
        own = manifest.attempt == proposal.attempt and frm is not None
        if manifest.attempt > proposal.attempt or (own and manifest.maker != frm):
            return "manifest_mismatch"
        newest = self.seen.get((manifest.maker, "global"))
        later = newest is not None and manifest.round > newest.round
        return "manifest_replayed" if later and manifest.sequence <= _sequence(newest) else ""

    def accept(self, model: ModelRef) -> bool:
        """Record its number as the newest; True: the state on disk must change."""
        manifest = model.manifest
        if manifest is None or manifest.maker == self._ctx.site:
            return False
        key = (manifest.maker, manifest.kind)
        if (newest := self.seen.get(key)) is not None and newest.sequence >= manifest.sequence:
            return False
        self.seen[key] = SeenManifest(*key, manifest.sequence, manifest.round, manifest.hash)
        return True

    def arrived(self, model: ModelRef) -> None:
        """Record that an accepted model has arrived. (The caller persists.)"""
        manifest = model.manifest
        if manifest is None:
            return
        newest = self.seen.get((manifest.maker, manifest.kind))
        if newest is not None and newest.sequence == manifest.sequence:
            self.seen[manifest.maker, manifest.kind] = replace(newest, arrived=True)

    def forget(self, maker: Site) -> None:
        """Forget a site's numbers, on an operator's order: the site may have lost them with its disk."""
        self.seen = {key: seen for key, seen in self.seen.items() if key[0] != maker}

    def keep(self, listed: Iterable[Site]) -> None:
        """Keep only the sites listed now. A site that is listed again starts from zero."""
        sites = set(listed)
        self.seen = {key: seen for key, seen in self.seen.items() if key[0] in sites}

    def _fault(self, model: ModelRef, kind: ModelKind, maker: Site | None) -> str:
        """What is wrong with a manifest of any kind. `maker`: the only site that may have signed it."""
        manifest = model.manifest
        if manifest is None:
            return "manifest_missing" if self.require else ""
        if manifest.fault:
            return manifest.fault
        if maker is not None and manifest.maker != maker:
            return "manifest_forged"  # only global models are forwarded
        if manifest.federation != self._ctx.federation:
            return "manifest_federation"
        if manifest.contract != self._ctx.info.contract:
            return "manifest_contract"
        return "" if manifest.kind == kind and _describes(manifest, model) else "manifest_mismatch"

    def _misplaced(self, manifest: Manifest | None, run: str, round: int) -> str:
        if manifest is None or (manifest.run, manifest.round) == (run, round):
            return ""
        return "other_run" if manifest.run != run else "other_round"

    def _replayed(self, model: ModelRef) -> str:
        manifest = model.manifest
        newest = self.seen.get((manifest.maker, manifest.kind)) if manifest is not None else None
        if manifest is None or newest is None or manifest.sequence > newest.sequence:
            return ""
        same = (newest.sequence, newest.hash) == (manifest.sequence, manifest.hash)
        again = same and not (newest.arrived and manifest.kind == "model")
        return "" if again else "manifest_replayed"


def _sequence(seen: SeenManifest | None) -> int:
    return seen.sequence if seen is not None else -1


def _describes(manifest: Manifest, model: ModelRef) -> bool:
    """Whether the message's fields match what was signed."""
    said = (model.hash, model.size_bytes, model.round, model.steps, model.cases, model.dice_val, model.kind)
    return said == (
        manifest.hash,
        manifest.size_bytes,
        manifest.round,
        manifest.steps,
        manifest.cases,
        manifest.dice_val,
        manifest.kind,
    )
