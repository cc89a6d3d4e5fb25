"""One-shot learning on real slices, where they are at hand: trained on images alone, judged with labels."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from gossipseg.learn import protocol
from gossipseg.learn.commands.oneshot import main
from gossipseg.learn.data.datalist import load_cases
from gossipseg.learn.params import ONE_SHOT_ALGORITHM, DataParams, TrainingParams
from gossipseg.testbed import presets
from tests.learn.data.test_data_real import folder
from tests.learn.harness import make_trainer, stored
from tests.learn.imagery import spec_file
from tests.learn.oneshot_site import make_spec

STEPS, ROUNDS = 2, 2
_opened: list[str] | None = None


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if _opened is not None and event == "open" and isinstance(arguments[0], str | Path):
        _opened.append(str(arguments[0]))


sys.addaudithook(_note)


@contextmanager
def files_opened() -> Iterator[list[str]]:
    """The files that Python opens within it, in any thread."""
    global _opened
    _opened = found = []
    try:
        yield found
    finally:
        _opened = None


def preset(data: Path, state: Path) -> Any:
    """The spec that the testbed's preset for this data comes to, with validation left out of the rounds."""
    sections, _ = presets.from_data([data])
    presets.set_algorithm(sections, ONE_SHOT_ALGORITHM)
    training = sections["training"] | {"steps_per_round": STEPS, "validate_every_rounds": 1000}
    return make_spec(
        data,
        state,
        flat=True,
        task=sections["task"],
        network=sections["network"],
        training=dataclasses.asdict(TrainingParams(**training)),
    )


@pytest.mark.data
@pytest.mark.slow
def test_it_trains_on_mr_slices_without_a_label_and_is_judged_with_mean_and_spread(tmp_path: Path) -> None:
    data = folder("pancreas_ct_mr/mr_t2_pansegdata")
    spec = preset(data, tmp_path / "state")
    splits = load_cases(DataParams(str(data)), spec.site, needs_labels=False)
    assert all(case.label for case in splits.training), "labels there are, and they are not looked at"
    with files_opened() as opened:
        trainer = make_trainer(spec)
        before = {n: t.clone() for n, t in trainer.model_state.weights().items()}
    assert {str(f) for case in splits.training for f in case.files} <= set(opened)
    assert not {str(case.label) for case in splits.training} & set(opened)
    with files_opened() as opened:
        done = [trainer.run_round(protocol.StartRound(r)) for r in range(1, ROUNDS + 1)]
    assert not {str(case.label) for _, case in splits} & set(opened), "nor are those that it is judged with"
    assert all(d.loss is not None and math.isfinite(d.loss) and not d.warning for d in done)
    assert any(not torch.equal(t, before[n]) for n, t in trainer.model_state.weights().items())

    stored(trainer)
    out = tmp_path / "scores.json"
    assert main(["--spec", spec_file(tmp_path, spec), "--split", "validation", "--json", str(out)]) == 0
    document = json.loads(out.read_text())
    scans = len(splits.validation)
    assert (document["protocol"], document["weights"], document["steps"]) == ("slices", "ema", STEPS * ROUNDS)
    assert (len(document["supports"]), len(document["pairs"])) == (scans, scans * (scans - 1))
    (scores,) = (one["range"] for one in document["per_class"].values())
    by_support = [value for one in document["supports"] for value in one["range"].values()]
    assert scores["mean"] == pytest.approx(sum(by_support) / scans)
    assert scores["std"] > 0
    assert (scores["lowest"], scores["highest"]) == (min(by_support), max(by_support))
