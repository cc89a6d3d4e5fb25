"""The coordinator's memory and time while it averages ten updates of 125 MB.

    python tests/bench/bench_aggregate.py [--sites 10] [--mb 125] [--robust none|median|trimmed_mean|krum]
        [--dtype float16|int8]

Prints the growth of the worker's memory in models' worth (aim: under 3), and the time as a ratio against
reading the same files through blake3, which any coordinator must do to check them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import blake3
import torch

from gossipseg.learn.exchange.global_model import everything
from gossipseg.learn.exchange.wire_format import export_wire

_LAYER = (512, 1024, 3, 3)
"""A large layer of a real network: 9.4 MB in float16."""

_CHILD = """
import json, resource, sys, time
from pathlib import Path
from gossipseg.algos.params import FedAvgParams
from gossipseg.algos.registry import build
from gossipseg.learn import protocol
from gossipseg.learn.exchange.aggregate import aggregate
from gossipseg.store import read_safetensors_header
folder = Path(sys.argv[1])
files = [protocol.UpdateFile(p.stem, str(p), 1) for p in sorted(folder.glob("update*.safetensors"))]
schema = {n: (i.dtype, i.shape) for n, i in read_safetensors_header(Path(files[0].path)).items()}
Path("/proc/self/clear_refs").write_text("5")
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(l for l in lines if l.startswith("VmHWM")).split()[1]) * 1024
before, began = peak(), time.perf_counter()
algorithm = build(FedAvgParams(robust=sys.argv[2]))
done = aggregate(protocol.Aggregate(1, 0, files), algorithm, schema, sys.argv[3], folder / "outbox")
assert done.export is not None, done
print(json.dumps({"grown_bytes": peak() - before, "seconds": time.perf_counter() - began}))
"""


def write_updates(folder: Path, sites: int, megabytes: int, dtype: str) -> int:
    """Updates of different values; returns the bytes of one."""
    layer_bytes = (1 if dtype == "int8" else 2) * torch.Size(_LAYER).numel()
    layers = max(1, round(megabytes * 1e6 / layer_bytes))
    torch.manual_seed(0)
    base = torch.randn(_LAYER) * 0.01
    for i in range(sites):
        state = {f"layer{n}.weight": base * (1 + i + n) for n in range(layers)}
        export_wire(folder / f"update{i}.safetensors", state, everything, dtype, {})
    return (folder / "update0.safetensors").stat().st_size


def read_seconds(folder: Path) -> float:
    """All updates read once and hashed."""
    began = time.perf_counter()
    for path in sorted(folder.glob("update*.safetensors")):
        digest = blake3.blake3()
        with path.open("rb") as f:
            while chunk := f.read(1 << 20):
                digest.update(chunk)
    return time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sites", type=int, default=10)
    parser.add_argument("--mb", type=int, default=125)
    parser.add_argument("--robust", default="none")
    parser.add_argument("--dtype", default="float16")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write_updates(folder, args.sites, args.mb, args.dtype)
        baseline_s = read_seconds(folder)
        child = [sys.executable, "-c", _CHILD, name, args.robust, args.dtype]
        found = json.loads(subprocess.run(child, capture_output=True, text=True, check=True).stdout)
    models = found["grown_bytes"] / size
    print(f"{args.sites} updates of {size / 1e6:.0f} MB")
    print(f"memory grew by {found['grown_bytes'] / 1e6:.0f} MB: {models:.2f} models' worth (aim: under 3)")
    print(f"time: {found['seconds'] / baseline_s:.1f} times that of reading and hashing the files")
    return 0 if models < 3 else 1


if __name__ == "__main__":
    sys.exit(main())
