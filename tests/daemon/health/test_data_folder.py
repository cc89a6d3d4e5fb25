"""The watch over the data folder: it never blocks, and one look at a time is made."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

from gossipseg.daemon.health.data_folder import DataFolder


async def test_a_folder_that_comes(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    assert "data is not there: waiting" in await folder.obstacle()
    (tmp_path / "data").mkdir()
    assert "data is empty: waiting" in await folder.obstacle()
    (tmp_path / "data/images").mkdir()
    assert await folder.obstacle() == ""


async def test_a_file_server_that_does_not_answer_blocks_nothing(tmp_path: Path) -> None:
    answer, looks = threading.Event(), []

    def hang(path: Path) -> str:
        looks.append(path)
        answer.wait(20)
        return ""

    folder = DataFolder(tmp_path, look=hang, answer_s=0.01)
    for _ in range(3):
        assert f"{tmp_path} does not answer: waiting" in await folder.obstacle()
    assert len(looks) == 1 and threading.active_count() < 20
    folder._answer_s = 20.0
    asked = asyncio.create_task(folder.obstacle())
    answer.set()
    assert await asked == "" and len(looks) == 1


def test_an_answer_after_the_end_is_nobodys(tmp_path: Path) -> None:
    answer = threading.Event()

    def hang(_: Path) -> str:
        answer.wait(20)
        return ""

    async def ask() -> None:
        await DataFolder(tmp_path, look=hang, answer_s=0.0).obstacle()

    asyncio.run(ask())
    looking = [t for t in threading.enumerate() if t.name == "data folder"]
    assert looking and all(t.daemon for t in looking)
    answer.set()
    for thread in looking:
        thread.join(20)
