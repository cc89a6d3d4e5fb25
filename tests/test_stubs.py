"""The committed stubs are what grpc_tools makes of the protos."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOLS = version("grpcio-tools")  # pyproject pins it: the oldest protobuf and grpcio that run follow from it
PROTOS = sorted(p.relative_to(ROOT) for p in (ROOT / "protos").rglob("*.proto"))


def test_the_protos_are_where_their_package_is():
    assert [str(p) for p in PROTOS] == [f"protos/gossipseg/wire/{n}.proto" for n in ("control", "peer")]


@pytest.mark.parametrize("proto", PROTOS, ids=lambda p: p.stem)
def test_committed_stubs_are_what_grpc_tools_generates(proto: Path, tmp_path: Path):
    out = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-Iprotos", *out, str(proto)]
    subprocess.run(command, cwd=ROOT, check=True)
    made = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*_pb2*"))
    assert len(made) == 3
    for file in made:
        fresh, committed = (tmp_path / file).read_text(), (ROOT / file).read_text()
        assert fresh == committed, f"{file} differs from what grpcio-tools {TOOLS} makes: run `make protos`"
