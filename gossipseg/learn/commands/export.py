"""The export command: the deployment model for use elsewhere.

Written to DIR: `model.pt` (a plain state dict, loads with weights_only), `model.safetensors` (the same, with
site, federation, round and steps as metadata), `bundle/` (a MONAI bundle). Where the personal and the shared
model predict together, all three hold both: names begin with `members.0.` and `members.1.`, in the order of
the metadata's `members`; its `networks` has their networks where one is a site's own. With --single it is the
better one of the two on validation.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from gossipseg.errors import LocalError
from gossipseg.learn import bundle
from gossipseg.learn.commands import cli
from gossipseg.learn.deploy.deployment import Deployment, load_deployment, must_segment
from gossipseg.learn.evaluation.mixture import Mixture
from gossipseg.store import atomic_write

OUTPUT_MODE = 0o644


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = cli.parser("export", "Write the deployment model as state dict, safetensors and MONAI bundle.")
    parser.add_argument("-o", "--out", required=True, metavar="DIR")
    parser.add_argument("--single", action="store_true", help="the best single model, not the mix")
    return cli.run(_export, parser, argv)


def _export(args: argparse.Namespace) -> int:
    deployment = load_deployment(cli.spec_of(args), single=args.single)
    must_segment(deployment)
    files = export(deployment, Path(args.out))
    why_none = bundle.unreadable(deployment.settings.task)
    document = {
        "schema": 1,
        "kind": "export",
        "site": deployment.settings.spec.site,
        "round": deployment.round,
        "steps": deployment.steps,
        "weights": deployment.weights,
        **({"members": dict(deployment.members)} if deployment.members else {}),
        **({"reason": deployment.reason} if deployment.reason else {}),
        "networks": [network.name for network in deployment.networks],
        "files": [str(f) for f in files],
        **({"note": f"no MONAI bundle is written: {why_none}"} if why_none else {}),
    }
    cli.write_json(document, "-")
    return 0


def export(deployment: Deployment, folder: Path) -> list[Path]:
    """Write all forms of the model into `folder`; returns the two weight files and the bundle's folder, where
    a bundle can read the task's images."""
    state = {n: t.detach().cpu().contiguous() for n, t in deployment.net.state_dict().items()}
    plain_bytes = _torch_bytes(state)
    root = folder / "bundle"
    bundled = not bundle.unreadable(deployment.settings.task)
    if not bundled and root.exists():
        raise LocalError(
            f"{root}: is of another export, and this one has no bundle: "
            f"{bundle.unreadable(deployment.settings.task)}. Choose another folder for -o."
        )
    _make_folders(root if bundled else folder, bundled=bundled)
    plain, safe = folder / "model.pt", folder / "model.safetensors"
    atomic_write(plain, plain_bytes, mode=OUTPUT_MODE)
    atomic_write(safe, safetensors_bytes(state, _metadata(deployment)), mode=OUTPUT_MODE)
    if not bundled:
        return [plain, safe]
    settings, round, net = deployment.settings, deployment.round, deployment.net
    networks = deployment.networks
    weights = net.weights if isinstance(net, Mixture) else ()
    texts = {
        "configs/metadata.json": json.dumps(bundle.metadata(settings, networks, round), indent=4),
        "configs/inference.json": json.dumps(bundle.inference_config(settings, networks, weights), indent=4),
        "docs/README.md": bundle.readme(settings, networks, round, deployment.reason),
    }
    atomic_write(root / "models/model.pt", plain_bytes, mode=OUTPUT_MODE)
    for name, text in texts.items():
        atomic_write(root / name, text.encode(), mode=OUTPUT_MODE)
    return [plain, safe, root]


def _make_folders(root: Path, *, bundled: bool) -> None:
    try:
        for name in ("configs", "models", "docs") if bundled else ("",):
            (root / name).mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise LocalError(
            f"{root}: cannot be made: {e.strerror or e}. Choose another folder for -o."
        ) from None


def _torch_bytes(state: Mapping[str, Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return buffer.getvalue()


def _metadata(deployment: Deployment) -> dict[str, str]:
    spec = deployment.settings.spec
    values = {"site": spec.site, "federation": spec.federation}
    return values | {
        "round": str(deployment.round),
        "steps": str(deployment.steps),
        "weights": deployment.weights,
        **({"members": json.dumps(dict(deployment.members))} if deployment.members else {}),
        **_networks(deployment),
    }


def _networks(deployment: Deployment) -> dict[str, str]:
    """The network of each model, where one of them has not the federation's."""
    if all(network == deployment.settings.network for network in deployment.networks):
        return {}
    return {"networks": json.dumps([asdict(network) for network in deployment.networks])}


if __name__ == "__main__":
    sys.exit(main())
