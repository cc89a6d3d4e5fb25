"""`listen` against the listed address, as far as this machine can tell."""

from __future__ import annotations

import pytest

from gossipseg.wire.listen_address import ips_of, listen_fault

NAMES = {"hosta": ["127.0.1.1"], "hostb": ["10.79.0.2"], "localhost": ["127.0.0.1"], "here": ["127.0.0.1"]}
AWAY = ("hostb:7443",)


def resolve(host: str) -> list[str]:
    return NAMES.get(host, [])


def fault(listen: str, dialled: str, *others: str, any_port: bool = False) -> tuple[str, str, bool] | None:
    found = listen_fault(listen, dialled, others or AWAY, any_port=any_port, resolve=resolve)
    return (found.text, found.remedy, found.certain) if found is not None else None


@pytest.mark.parametrize(
    ("listen", "dialled", "others"),
    [
        ("0.0.0.0:7443", "hosta:7443", AWAY),
        ("[::]:7443", "10.0.0.1:7443", AWAY),
        ("10.0.0.1:7443", "hosta:7443", AWAY),
        ("hostb:7443", "10.0.0.1:7443", AWAY),
        ("unknown:7443", "10.0.0.1:7443", AWAY),
        ("127.0.0.1:7001", "127.0.0.1:7001", ("127.0.0.1:7002",)),
        ("localhost:7001", "localhost:7001", ("localhost:7002",)),
        ("hosta:7001", "hosta:7001", ("here:7002", "127.0.0.1:7003")),
        ("127.0.0.1:7001", "hosta:7001", ("127.0.0.1:7003",)),
    ],
)
def test_what_fits(listen: str, dialled: str, others: tuple[str, ...]) -> None:
    assert fault(listen, dialled, *others) is None


def test_a_site_alone_may_listen_where_it_likes() -> None:
    assert listen_fault("127.0.0.1:7443", "hosta:7443", (), resolve=resolve) is None


def test_a_name_that_is_loopback_at_home_is_certainly_wrong() -> None:
    found = fault("hosta:7443", "hosta:7443")
    assert found is not None
    text, remedy, certain = found
    assert "hosta, which is 127.0.1.1 on this machine" in text and certain
    assert "listen: 0.0.0.0:7443" in remedy and "/etc/hosts" in remedy


@pytest.mark.parametrize("listen", ["127.0.0.1:7443", "[::1]:7443", "localhost:7443"])
def test_loopback_while_listed_elsewhere(listen: str) -> None:
    """A proxy on this machine may make it right."""
    found = fault(listen, "10.0.0.1:7443")
    assert found is not None and "Only this machine gets there" in found[0] and not found[2]


def test_ports_that_differ() -> None:
    found = fault("0.0.0.0:7439", "10.0.0.1:7443")
    assert found is not None and "ports differ" in found[0] and "forwards port 7443" in found[1]
    found = fault("0.0.0.0:0", "10.0.0.1:7443")
    assert found is not None and "any free port" in found[0]
    assert fault("0.0.0.0:0", "10.0.0.1:7443", any_port=True) is None, "mDNS tells it"


def test_names_are_resolved_as_this_machine_does() -> None:
    assert "127.0.0.1" in ips_of("localhost")
    assert ips_of("no-such-host.invalid") == [] == ips_of("two..dots")
