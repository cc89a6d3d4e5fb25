"""The wire file of a small U-Net in each wire dtype: its bytes, and the time to write and to read it.

    python tests/bench/bench_wire.py [--width 12] [--runs 15]

Times are ratios to float16's, by turns in one process, the median of the runs. Exits 1 where a file in int8
has more than 0.6 of float16's bytes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from gossipseg.learn.exchange.admission import Admission
from gossipseg.learn.exchange.global_model import everything
from gossipseg.learn.exchange.wire_format import export_wire, load_incoming
from gossipseg.learn.params import AdmissionParams
from gossipseg.nets import registry
from gossipseg.nets.params import NetworkParams

DTYPES = ("float16", "bfloat16", "float32", "int8")
AIM = 0.6


def small_unet(width: int) -> dict[str, Tensor]:
    """W_0 of a 3-D U-Net for one channel and two labels."""
    torch.manual_seed(0)
    network = NetworkParams(name="unet", width=width)
    model = registry.build(network, spatial_dims=3, in_channels=1, out_channels=2, patch_size=(48, 48, 48))
    return dict(model.state_dict())


def seconds(work: Callable[[], object]) -> float:
    """How long it takes once."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measured(state: dict[str, Tensor], folder: Path, runs: int) -> dict[str, dict[str, float]]:
    """Dtype → bytes, and median seconds of writing and of reading with admission."""
    times: dict[str, dict[str, list[float]]] = {d: {"write": [], "read": []} for d in DTYPES}
    for _ in range(runs + 1):
        for dtype in DTYPES:
            path, admission = folder / dtype, Admission(AdmissionParams())

            def write(dtype: str = dtype, path: Path = path) -> None:
                export_wire(path, state, everything, dtype, {})

            def read(dtype: str = dtype, path: Path = path, admission: Admission = admission) -> None:
                load_incoming(path, state, everything, dtype, "south", admission)

            times[dtype]["write"].append(seconds(write))
            times[dtype]["read"].append(seconds(read))
    return {
        dtype: {
            "bytes": (folder / dtype).stat().st_size,
            **{what: statistics.median(found[1:]) for what, found in both.items()},
        }
        for dtype, both in times.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=12)
    parser.add_argument("--runs", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    state = small_unet(args.width)
    with tempfile.TemporaryDirectory() as name:
        found = measured(state, Path(name), args.runs)
    half = found["float16"]
    print(f"unet, 3-D, width {args.width}: {sum(t.numel() for t in state.values()):,} values")
    for dtype, row in found.items():
        both = (row["write"] + row["read"]) / (half["write"] + half["read"])
        print(
            f"{dtype:9} {row['bytes'] / 1e6:7.3f} MB  {row['bytes'] / half['bytes']:.3f} of float16's bytes; "
            f"time: write {row['write'] / half['write']:.2f}, read {row['read'] / half['read']:.2f}, "
            f"both {both:.2f} ({1000 * (row['write'] + row['read']):.0f} ms)"
        )
    ratio = found["int8"]["bytes"] / half["bytes"]
    print(f"int8: {ratio:.3f} of float16's bytes (aim: under {AIM})")
    return 0 if ratio < AIM else 1


if __name__ == "__main__":
    sys.exit(main())
