"""The container testbed, as far as it can be checked without an engine: schema, references, Dockerfile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    doc: dict[str, Any] = yaml.safe_load((HERE / "compose.yaml").read_text())
    return doc


def test_the_file_fits_the_compose_specification(compose: dict[str, Any]) -> None:
    compose_spec = pytest.importorskip("compose_spec", reason="no wheel for this Python")
    text = yaml.safe_dump(compose)  # with the merge keys resolved, as compose does before it checks
    compose_spec.PyCompose.from_yaml(text).to_spec()
    with pytest.raises(ValueError, match="intervall"):
        compose_spec.PyCompose.from_yaml(text.replace("interval: 10s", "intervall: 10s")).to_spec()


KEYS_OF_1_29 = {"version", "services", "networks", "volumes", "secrets", "configs"}
SERVICE_KEYS_OF_1_29 = {
    *("build", "image", "volumes", "networks", "tmpfs", "read_only", "cap_drop", "security_opt", "restart"),
    *("stop_grace_period", "depends_on", "healthcheck", "profiles", "command", "environment"),
}
"""Those of its compose_spec.json that this file uses."""


def test_docker_compose_1_29_knows_every_key(compose: dict[str, Any]) -> None:
    """It refuses a top-level `name`, and any other key that came later."""
    assert {key for key in compose if not key.startswith("x-")} <= KEYS_OF_1_29
    for service in compose["services"].values():
        assert set(service) <= SERVICE_KEYS_OF_1_29
        conditions = {d["condition"] for d in service.get("depends_on", {}).values()}
        assert conditions <= {"service_completed_successfully"}


def test_services_volumes_networks_and_dependencies_refer_to_each_other(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name, service in services.items():
        assert set(service["networks"]) <= set(compose["networks"])
        assert {v.split(":")[0] for v in service["volumes"]} <= set(compose["volumes"])
        for other in service.get("depends_on", {}):
            needed = set(services[other].get("profiles", []))
            assert needed <= set(service.get("profiles", [])), f"{name} needs {other} of another profile"
        assert (HERE / service["build"]["context"] / service["build"]["dockerfile"]).is_file()


def test_static_list_is_the_default_and_mdns_a_profile(compose: dict[str, Any]) -> None:
    default = {n for n, s in compose["services"].items() if "profiles" not in s}
    assert default == {"setup", "north", "lakeside", "valley"}
    for name, service in compose["services"].items():
        if name.startswith("setup"):
            assert ("--mdns" in service["command"]) == ("mdns" in service.get("profiles", []))
        else:
            assert "gossipctl status" in service["healthcheck"]["test"][1]


def test_the_image_copies_what_exists_and_runs_as_a_user() -> None:
    lines = (HERE / "Dockerfile").read_text().splitlines()
    for line in lines:
        if line.startswith("COPY"):
            *sources, _ = line.split()[1:]
            assert all((ROOT / source).exists() for source in sources), line
    assert any(line.startswith("USER gossipseg") for line in lines)
