"""Makes files of pretrained weights available where a run looks for them: beside its data list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gossipseg.lab.plan.run_plans import RunPlan
from gossipseg.nets.params import NetworkParams

WEIGHTS = "encoder_weights"
"""The option of a network that names such a file."""


def lend_all(planned: Sequence[RunPlan], folders: Mapping[str, str]) -> None:
    """Link the files into the folders of the lab's data lists, before the runs. `folders`: site → its own
    data folder."""
    for plan in planned:
        network = plan.parsed().network
        for site, folder in plan.sites.items():
            lend(network, Path(folders[site]), Path(folder))
            if own := plan.personal_networks.get(site):
                lend(NetworkParams(**own), Path(folders[site]), Path(folder))


def lend(network: NetworkParams, source: Path, folder: Path) -> None:
    """Link the file that the network's options name into `folder`, if it is in `source`."""
    name = network.options.get(WEIGHTS)
    if name and (source / name).is_file() and not (folder / name).exists():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).unlink(missing_ok=True)  # a link to a missing file
        (folder / name).symlink_to((source / name).resolve())
