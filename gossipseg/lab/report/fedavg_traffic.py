"""What FedAvg would send where it was not run: the size of its network's file."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gossipseg.algos import registry as algorithms
from gossipseg.errors import ConfigError
from gossipseg.lab.plan import variants
from gossipseg.lab.report.statistics import BASELINE
from gossipseg.learn.engine.build import output_channels
from gossipseg.learn.exchange.wire_format import export_wire
from gossipseg.nets import registry as networks


def fedavg_model_bytes(settings: Mapping[str, Any]) -> int | None:
    """Bytes of one FedAvg model under the settings of a results.json: the whole network's.

    None where FedAvg cannot train the federation's network, or the settings cannot be read any more.
    """
    sections = {**settings.get("federation", {}), "algorithm": {"name": BASELINE}}
    try:
        federation = variants.validated(sections, "results.json")
        task = federation.task
        model = networks.build(
            federation.network,
            spatial_dims=task.spatial_dims,
            in_channels=task.channels,
            out_channels=output_channels(task, federation.training),
            patch_size=task.patch_size,
        )
    except ConfigError:
        return None
    fedavg = algorithms.build(federation.algorithm)
    with tempfile.TemporaryDirectory(prefix="gossiplab-") as folder:
        file = Path(folder) / "model.safetensors"
        export_wire(file, model.state_dict(), fedavg.is_shared, federation.wire.dtype, {})
        return file.stat().st_size
