"""Certificates that end soon: whose, how it is said, and that it is said once a day."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gossipseg import config, trust
from gossipseg.daemon.observe import certificate_expiry
from tests.daemon.harness import files_only
from tests.e2e.federation import Federation


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Federation]:
    with files_only(tmp_path, "north", "south", "west") as f:
        yield f


def test_the_last_listed_certificate_counts_and_of_this_site_the_one_in_use(
    files: Federation, tmp_path: Path
) -> None:
    def certificate(site: str, days: int) -> str:
        made = trust.create_identity(site, tmp_path / f"{site}-{days}", days=days)
        return made.certificate_pem.decode()

    def change(document: dict[str, list[dict[str, object]]]) -> None:
        sites = {site["name"]: site for site in document["sites"]}
        sites["south"]["certificate"] = [certificate("south", 10)]
        sites["west"]["certificate"] = [certificate("west", 9), certificate("west", 400)]

    files.edit(change)
    loaded = config.load(files["north"].config)
    now_s = time.time()
    assert list(certificate_expiry.warnings(loaded, 3000.0, now_s)) == ["south"]
    days, text = certificate_expiry.warnings(loaded, 3000.0, now_s)["south"]
    assert 9 < days < 11 and text == "south's certificate expires in 10 days: ask south for its next one"
    found = certificate_expiry.warnings(loaded, 12.0, now_s)
    assert found.keys() == {"north", "south"} and "`gossipctl rotate`" in found["north"][1]
    later = certificate_expiry.warnings(loaded, 3000.0, now_s + 20 * certificate_expiry.DAY_S)
    assert "expired 10 days ago" in later["south"][1]
    assert "west" in certificate_expiry.warnings(loaded, 3000.0, now_s + 380 * certificate_expiry.DAY_S)


def test_it_is_told_at_once_and_again_after_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificate_expiry, "LOOK_EVERY_S", 0.0)
    hours, told = iter(range(60)), []

    def tell(event: str, *, site: str, days: float, reason: str) -> None:
        told.append((event, site, days))

    async def watch() -> None:
        await certificate_expiry.watch(lambda: {"south": (9.96, "soon")}, tell, lambda: next(hours) * 3600.0)

    with pytest.raises(RuntimeError, match="StopIteration"):
        asyncio.run(watch())
    assert told == [("certificate_expires", "south", 10.0)] * 3
