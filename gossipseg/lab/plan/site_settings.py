"""What a row sets of its sites' own files: `gcml[site.north.personal_network.name=segresnet]`.

`site.NAME.` stands before a key of site.yaml; without NAME it is set at all sites. Of these keys a row may
set `personal_network`; the rest is the lab's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from pydantic import TypeAdapter, ValidationError

from gossipseg.config.files import FederationFile
from gossipseg.config.problems import nearest
from gossipseg.config.reading import set_dotted
from gossipseg.errors import ConfigError
from gossipseg.lab.plan.variants import OF_A_SITE, OF_THE_LAB, Variant
from gossipseg.learn.params import personal_network_problem
from gossipseg.nets.params import NetworkParams, network_names

SECTION = "personal_network"
Networks = dict[str, dict[str, Any]]


def personal_networks(variant: Variant, names: Sequence[str], federation: FederationFile) -> Networks:
    """Site → its personal_network, of the sites that have one. Raises ConfigError."""
    raw: dict[str, dict[str, Any]] = {name: {} for name in names}
    for site, key, value in _settings(variant, names):
        for name in [site] if site else names:
            set_dotted(raw[name], key, value, f"--algorithms {variant.label}", is_text=False)
    return {
        name: asdict(_checked(variant, name, sections[SECTION], federation))
        for name, sections in raw.items()
        if SECTION in sections
    }


def _settings(variant: Variant, names: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """(site, or "" for all; key of site.yaml; value): those of all sites first, so that a site's own
    count."""
    found = []
    for key, value in variant.options:
        if not key.startswith(OF_A_SITE):
            continue
        rest = key.removeprefix(OF_A_SITE)
        site, _, inner = rest.partition(".")
        if site == SECTION:
            site, inner = "", rest
        elif site not in names:
            raise _wrong(variant, key, nearest(site, names) or f"The sites are {', '.join(names)}.")
        if not inner.startswith(f"{SECTION}."):
            raise _wrong(variant, key, f"Write {OF_A_SITE}NAME.{SECTION}.name=segresnet, say.")
        found.append((site, inner, value))
    return iter(sorted(found, key=lambda setting: setting[0] != ""))


def _checked(variant: Variant, site: str, raw: Any, federation: FederationFile) -> NetworkParams:
    key = f"{OF_A_SITE}{site}.{SECTION}"
    if variant.name in OF_THE_LAB:
        raise _wrong(variant, key, f"{variant.name} has no personal model: leave it out.")
    try:
        network: NetworkParams = TypeAdapter(NetworkParams).validate_python(raw)
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        inner = ".".join([key, *map(str, first["loc"])])
        raise _wrong(variant, inner, f"{first['msg']}.") from None
    if "name" not in raw or network.name not in network_names():
        hint = nearest(network.name, network_names()) if "name" in raw else ""
        raise _wrong(variant, f"{key}.name", hint or f"Name the network: {', '.join(network_names())}.")
    problem = personal_network_problem(network, federation.training, federation.algorithm)
    if problem is not None:
        raise ConfigError(
            f"{key}: {problem[0]}",
            key="--algorithms",
            value=variant.label,
            remedy=problem[3],
        )
    return network


def _wrong(variant: Variant, key: str, remedy: str) -> ConfigError:
    problem = f"{key} is no setting of a site that a row may have"
    return ConfigError(problem, key="--algorithms", value=variant.label, remedy=remedy)
