"""The rounds that a site trains, from its files and its worker's word to what gossipctl shows."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tests.daemon.harness import files_only, running, settled
from tests.daemon.test_privacy_budget import service
from tests.daemon.test_runtime import READY


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
