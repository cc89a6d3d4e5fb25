"""Status and answers to an operator, from a real runtime."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from tests.daemon.harness import READY, daemon_of, files_only, running, service, settled
from tests.e2e.federation import Federation


@pytest.mark.parametrize(
    ("of_all", "own", "ahead", "last"),
    [(None, None, 3, None), (None, 7, 3, 7), (9, None, 0, 9), (9, None, 3, 6), (9, 5, 3, 5), (9, 7, 3, 6)],
)
async def test_status_shows_the_round_with_which_the_site_ends(
    tmp_path: Path, of_all: int | None, own: int | None, ahead: int, last: int | None
) -> None:
    """Of its own count: a site that joined late trains fewer rounds than the federation."""
    with files_only(tmp_path, "north", "south") as files:
        files.edit(lambda doc: doc.setdefault("training", {}).update(rounds=of_all))
        files["north"].edit(rounds=own)
        async with running(files) as (r, _):
            r.worker.on_worker_message(msgspec.structs.replace(READY, ahead=ahead))
            await settled(r)
            assert (await service(r).status()).rounds == r.node.last_round == last


async def test_status_is_told_without_a_state_directory(files: Federation) -> None:
    daemon = daemon_of(files)
    shutil.rmtree(daemon.config.site.state_dir)
    daemon.runtime.places.lost["state_dir_gone"] = "the state directory was deleted"
    status = await service(daemon.runtime).status()
    assert status.state == "degraded" and "was deleted" in status.reasons[0] and status.disk_free_bytes == 0
    await daemon.runtime.transport.close()


async def test_a_port_that_was_left_open_is_shown(files: Federation) -> None:
    files["north"].edit(listen="127.0.0.1:0")
    daemon = daemon_of(files)
    await daemon.transport.start(daemon.runtime.intake)
    try:
        shown = (await service(daemon.runtime).status()).listen
        assert shown == daemon.transport.address and not shown.endswith(":0")
    finally:
        await daemon.transport.close()
