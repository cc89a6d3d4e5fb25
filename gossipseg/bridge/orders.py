"""The core's effects as orders to the worker, and the worker's reports as events of the core."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from gossipseg.bridge.manifest_checks import draft
from gossipseg.core import effects, events
from gossipseg.core.types import ExchangeId, ModelKind, ModelRef, Site
from gossipseg.learn import protocol

PathOf = Callable[[str], Path]
"""Hash → the store's path of that model."""


def start_round(effect: effects.StartRound, path_of: PathOf, listed: Sequence[Site]) -> protocol.StartRound:
    """Make the order for a round. `listed`: all sites of peers.yaml, for workers that distinguish sites by
    name."""
    entry, model = effect.visit, effect.start_from
    return protocol.StartRound(
        effect.round,
        protocol.Visit.of(entry.model, entry.frm, path_of(entry.model.hash)) if entry else None,
        effect.export,
        protocol.GlobalModelFile.of(model, path_of(model.hash)) if model else None,
        effect.settling_in,
        effect.finetuning,
        list(listed),
        effect.ahead,
    )


def aggregate(effect: effects.Aggregate, path_of: PathOf) -> protocol.Aggregate:
    """The order to aggregate a round's updates, for the worker of the coordinator."""
    files = [
        protocol.UpdateFile(site, str(path_of(model.hash)), model.cases, model.steps, model.hash)
        for site, model in effect.updates
    ]
    return protocol.Aggregate(effect.round, effect.attempt, files)


def swap_order(
    effect: effects.ExportSnapshot | effects.AdmitSnapshot | effects.ApplySwap, path_of: PathOf
) -> protocol.SwapOrder:
    """Make an order of a swap."""
    match effect:
        case effects.ExportSnapshot():
            return protocol.ExportSnapshot(_swap(effect.swap), effect.keeps)
        case effects.AdmitSnapshot(model=model):
            return protocol.AdmitSnapshot(
                _swap(effect.swap), effect.frm, str(path_of(model.hash)), model.hash
            )
        case effects.ApplySwap():
            return _apply_swap(effect, path_of)


def _apply_swap(effect: effects.ApplySwap, path_of: PathOf) -> protocol.ApplySwap:
    theirs, own = effect.theirs, effect.own
    return protocol.ApplySwap(
        _swap(effect.swap),
        effect.frm,
        effect.part,
        effect.weight,
        str(path_of(theirs.hash)),
        theirs.hash,
        str(path_of(own.hash)) if own is not None else None,
        theirs.steps,
        theirs.round,
        effect.gave,
    )


def _swap(id: ExchangeId) -> protocol.Swap:
    return protocol.Swap(id.asker, id.number)


def _exchange_id(swap: protocol.Swap) -> ExchangeId:
    return ExchangeId(swap.asker, swap.number)


def export_kind(exchange: str) -> ModelKind:
    """The kind of a site's own export, under an algorithm that exchanges by `exchange`."""
    return "update" if exchange == "rounds" else "model"


def export_position(report: protocol.RoundDone) -> int:
    """The position from which a site that adopts the model counts."""
    return report.round + report.ahead


def exported(
    export: protocol.Export, hash_: str, size_bytes: int, round: int, kind: ModelKind, path: Path
) -> ModelRef:
    """The model of a worker's file that is in the store now. Reads its header for the manifest."""
    return ModelRef(hash_, size_bytes, round, export.steps, export.cases, kind=kind, manifest=draft(path))


def round_finished(report: protocol.RoundDone, export: ModelRef | None) -> events.RoundFinished:
    visit = report.visit
    return events.RoundFinished(
        report.round,
        report.steps,
        report.dice_val,
        replace(export, dice_val=report.export.dice_val) if export and report.export else None,
        events.VisitResult(visit.hash, visit.outcome, visit.reason, visit.detail) if visit else None,
        report.reverted,
        report.own_steps,
        report.ahead,
    )


def aggregated(
    report: protocol.AggregateDone, model: ModelRef | None
) -> events.Aggregated | events.AggregationFailed:
    """`model`: the aggregated model in the store; None: there is none, or it could not be stored."""
    refused = tuple(sorted(report.refused.items()))
    if model is None:
        reason = report.reason or "not_stored"
        return events.AggregationFailed(report.round, report.attempt, reason, refused)
    contributors = tuple(sorted(report.contributors))
    return events.Aggregated(report.round, report.attempt, model, contributors, refused)


def worker_ready(report: protocol.Ready, contract: tuple[tuple[str, str], ...]) -> events.WorkerReady:
    """`contract`: with the network signature that the worker has reported."""
    return events.WorkerReady(
        report.round,
        report.steps,
        report.cases,
        contract,
        report.last_visit,
        report.dice_val,
        report.last_global,
        report.own_steps,
        report.ahead,
        _exchange_id(report.last_swap) if report.last_swap is not None else None,
        report.personal_refusal,
        report.takes_personal,
    )


def personal_order(
    effect: effects.ExportPersonal | effects.HoldPersonal, path_of: PathOf
) -> protocol.PersonalOrder:
    """Make an order about personal models."""
    match effect:
        case effects.ExportPersonal():
            return protocol.ExportPersonal()
        case effects.HoldPersonal(models=models):
            files = [
                protocol.PersonalFile(site, str(path_of(model.hash)), model.hash, model.round)
                for site, model in models
            ]
            return protocol.HoldPersonal(files)


def personal_exported(report: protocol.PersonalExported, model: ModelRef | None) -> events.PersonalExported:
    """`model`: the personal model in the store; None: there is none, or it could not be stored."""
    reason = "" if model is not None else report.reason or "not_stored"
    return events.PersonalExported(model, report.round, reason)


def personal_held(report: protocol.PersonalHeld) -> events.PersonalHeld:
    return events.PersonalHeld(tuple((r.site, r.hash, r.reason, r.detail) for r in report.refused))


def snapshot_exported(report: protocol.SnapshotExported, model: ModelRef | None) -> events.SnapshotExported:
    """`model`: the snapshot in the store; None: there is none, or it could not be stored."""
    reason = "" if model is not None else report.reason or "not_stored"
    if model is not None and report.export is not None:
        model = replace(model, dice_val=report.export.dice_val)
    return events.SnapshotExported(_exchange_id(report.swap), model, reason)


def snapshot_admitted(report: protocol.SnapshotAdmitted) -> events.SnapshotAdmitted:
    return events.SnapshotAdmitted(_exchange_id(report.swap), report.reason, report.detail)


def harmful_peer(report: protocol.SwapApplied) -> events.HarmfulPeer | None:
    """The peer whose swaps did harm, by the worker's measure; None: this one's did not, or it was taken
    back."""
    return events.HarmfulPeer(report.frm, report.harm) if report.harm and not report.reason else None


def swap_applied(report: protocol.SwapApplied) -> events.SwapApplied:
    """A swap that was not applied leaves steps and position as they were."""
    if report.reason:
        return events.SwapApplied(_exchange_id(report.swap), report.reason)
    return events.SwapApplied(_exchange_id(report.swap), "", report.steps, report.ahead)
