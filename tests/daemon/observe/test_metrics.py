"""The metrics: values, bounds, the endpoint over HTTP, and the dashboard and alerts that read them."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from gossipseg import daemon
from gossipseg.core import effects as fx
from gossipseg.core import events as ev
from gossipseg.core import messages as ms
from gossipseg.core import offences
from gossipseg.core.types import AliveRecord
from gossipseg.daemon.observe import metrics, metrics_server
from gossipseg.daemon.observe.counters import REASONS, Counters, known
from gossipseg.daemon.observe.metrics import METRICS, Exporter, sample
from gossipseg.errors import ConfigError, LocalError
from tests.core.rig import TRAINING
from tests.daemon.harness import daemon_of
from tests.e2e.federation import Federation

MONITORING = Path(__file__).parents[3] / "docs" / "admin" / "monitoring"


def values(families: Any) -> dict[tuple[str, ...], float]:
    """(name, label values in their order …) → value."""
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


async def test_what_a_site_shows(files: Federation) -> None:
    r = daemon_of(files).runtime
    r.training.dice_val, r.training.loss = 0.75, 0.5
    r.inject(ev.Start())
    r.counters.effect(fx.Note("model_broken", "south", "schema_mismatch", {"hash": "ab"}))
    r.counters.effect(fx.Note("offer_rejected", "south", "rm -rf", {"hash": "ab"}))
    r.counters.effect(fx.Note("transfer_done", "stranger", "", {"hash": "ab"}))
    r.counters.lagged(0.3)
    shown = values(sample(r, time.monotonic(), degraded=True))
    assert shown["gossipseg_validation_dice",] == 0.75 and shown["gossipseg_degraded",] == 1
    assert shown["gossipseg_phase", "starting"] == 1 and shown["gossipseg_phase", "training"] == 0
    assert shown["gossipseg_members", "unseen"] == 1 and shown["gossipseg_peer_up", "south"] == 0
    assert shown["gossipseg_refusals_total", "in", "south", "schema_mismatch"] == 1
    assert shown["gossipseg_refusals_total", "out", "south", "other"] == 1
    assert shown["gossipseg_event_loop_lag_seconds_bucket", "0.25"] == 0
    assert shown["gossipseg_event_loop_lag_seconds_bucket", "+Inf"] == 1
    assert shown["gossipseg_certificate_expires_timestamp_seconds", "south"] > time.time()
    assert shown["gossipseg_disk_free_bytes",] > 0
    assert "stranger" not in str(shown)
    await r.transport.close()


def test_every_part_that_warns_has_its_label() -> None:
    sources = Path(daemon.__file__).parent.rglob("*.py")
    calls = re.compile(r'(?:warn\(|listen\([\w.]+, )"(\w+)"')
    warned = {part for file in sources for part in calls.findall(file.read_text())}
    assert warned == set(metrics.WARNINGS)


async def test_forged_records_are_counted_by_the_peer_that_brought_them(files: Federation) -> None:
    r = daemon_of(files).runtime
    r.inject(ev.Start())
    stranger = AliveRecord("south", 1, 1, "192.0.2.1:1", 5, b"not south's signature")
    r.intake.verified("south", ms.Ping((stranger,), TRAINING))
    shown = values(sample(r, time.monotonic(), degraded=False))
    assert shown["gossipseg_peer_forged_records_total", "south"] == 1
    await r.transport.close()


def test_a_peer_cannot_make_up_series() -> None:
    counters = Counters()
    for i in range(1000):
        counters.effect(fx.Note("offer_rejected", "south", f"reason {i}", {}))
    assert list(counters.refusals) == [("out", "south", "other")]
    assert known("not_finite") == "not_finite"


def test_every_code_that_the_core_and_the_worker_refuse_by_has_its_label() -> None:
    assert offences.OFFENCES | offences.EXCUSED <= REASONS
    # exchange.admission's are read from its text: importing it loads torch
    text = (Path(__file__).parents[3] / "gossipseg" / "learn" / "exchange" / "admission.py").read_text()
    codes = re.search(r"Reason = Literal\[(.*?)\]", text, re.DOTALL)
    assert codes is not None and set(re.findall(r'"(\w+)"', codes[1])) <= REASONS


async def test_every_metric_is_shown_and_none_that_is_not_listed(files: Federation) -> None:
    r = daemon_of(files).runtime
    r.training.dice_val, r.training.loss = 0.75, 0.5
    r.inject(ev.Start())
    r.counters.effect(fx.Note("model_broken", "south", "schema_mismatch", {"hash": "ab"}))
    r.counters.effect(fx.Note("member_dead", "south"))
    made = {family.name for family in sample(r, time.monotonic(), degraded=False)}
    listed = {name.removesuffix("_total") for name in METRICS}
    later = {
        "gossipseg_committed_round",  # under a coordinator
        "gossipseg_swaps",  # under swaps
        "gossipseg_peer_set_aside",
        "gossipseg_peer_rtt_seconds",
        "gossipseg_peer_silence_seconds",
    }
    assert listed - later <= made <= listed
    await r.transport.close()


def get(port: int, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
        return str(answer.read().decode())


async def test_the_endpoint(files: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    r = daemon_of(files).runtime
    exporter = Exporter(r, "127.0.0.1", 0, lambda: False)
    await exporter.start()
    try:
        families = {
            f.name for f in text_string_to_metric_families(await asyncio.to_thread(get, exporter.port))
        }
        assert {"gossipseg_info", "gossipseg_wire_sent_bytes", "process_open_fds"} <= families
        with pytest.raises(LocalError, match=r"metrics\.port"):
            await Exporter(r, "127.0.0.1", exporter.port, lambda: False).start()
        monkeypatch.setattr("gossipseg.daemon.observe.metrics.ANSWER_TIMEOUT_S", 0.05)
        with ThreadPoolExecutor(1) as pool:  # the loop stands still: the scrape must fail, not hang
            asking = pool.submit(get, exporter.port)
            with pytest.raises(urllib.error.HTTPError) as e:
                asking.result(60)
        e.value.close()  # it holds the answer, and so the socket
    finally:
        await exporter.close()
        await r.transport.close()


async def test_connections_that_ask_for_nothing_use_up_neither_threads_nor_descriptors(
    files: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_server._Handler, "timeout", 0.3)
    r = daemon_of(files).runtime
    exporter = Exporter(r, "127.0.0.1", 0, lambda: False)
    await exporter.start()
    before = threading.active_count()
    idle = [socket.create_connection(("127.0.0.1", exporter.port), timeout=20) for _ in range(60)]
    try:
        ended = await asyncio.to_thread(lambda: [s.recv(1) for s in idle])  # each is closed, with no answer
        assert set(ended) == {b""} and threading.active_count() <= before + metrics_server.MAX_AT_ONCE
        assert "gossipseg_info" in await asyncio.to_thread(get, exporter.port)
    finally:
        for s in idle:
            s.close()
        await exporter.close()
        await r.transport.close()


def test_it_is_off_unless_asked_for_and_never_leaves_the_machine(files: Federation) -> None:
    from gossipseg import config

    path = files["north"].config
    assert config.load(path).site.metrics.port is None
    for host in ("0.0.0.0", "192.0.2.1", "prometheus.example.org"):
        with pytest.raises(ConfigError, match=r"metrics\.host"):
            config.load(path, overrides={"metrics.host": host})
    assert (
        config.load(path, overrides={"metrics.host": "::1", "metrics.port": "9464"}).site.metrics.port == 9464
    )


# ---------------------------------------------------------------- dashboard and alerts


def queries() -> dict[str, str]:
    """Place → PromQL, of the alert rules and the dashboard."""
    rules = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"][0]["rules"]
    found = {rule["alert"]: rule["expr"] for rule in rules}
    for panel in json.loads((MONITORING / "grafana.json").read_text())["panels"]:
        for target in panel["targets"]:
            found[f"{panel['title']}/{target['refId']}"] = target["expr"]
    return found


@pytest.mark.parametrize("place", queries())
def test_every_query_is_promql_over_metrics_that_exist(place: str) -> None:
    import promql_parser

    query = queries()[place].replace("$__range", "1h").replace("$instance", ".*")
    promql_parser.parse(query)
    names = set(re.findall(r"\bgossipseg_\w+", query))
    histograms = {
        f"{n}{end}"
        for n, d in METRICS.items()
        for end in ("_bucket", "_count", "_sum")
        if d.kind == "histogram"
    }
    assert names <= set(METRICS) | histograms, names - set(METRICS)
    assert names or re.search(r"\b(up|process_\w+)\b", query)
    for name in names:
        if METRICS.get(name, METRICS["gossipseg_info"]).kind == "counter":
            assert re.search(rf"(rate|increase)\({name}\b", query), f"{name} is a counter"


def test_alerts_are_explained_and_well_formed() -> None:
    rules = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"][0]["rules"]
    page = (MONITORING.parent / "monitoring.md").read_text()
    for rule in rules:
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["alert"] in page, f"docs/admin/monitoring.md does not explain {rule['alert']}"
    metrics_page = (MONITORING.parents[1] / "reference" / "metrics.md").read_text()
    for name in METRICS:
        assert name in metrics_page, f"docs/reference/metrics.md does not explain {name}"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool here")
def test_promtool_accepts_the_rules() -> None:
    done = subprocess.run(
        ["promtool", "check", "rules", str(MONITORING / "alerts.yaml")], capture_output=True
    )
    assert done.returncode == 0, done.stdout
