"""`gossipctl check` on data, device and model: what `gossipseg.learn.commands.check` finds."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

from gossipseg.children import directory, environment
from gossipseg.config import Config
from gossipseg.ctl import learn
from gossipseg.ctl import output as out
from gossipseg.ctl.doctor.findings import Finding

MAX_PROBLEMS = 20


def check_data(config: Config) -> Iterator[Finding]:
    """Check every case of the data list, and the device, by `gossipseg.learn.commands.check`."""
    done = subprocess.run(
        learn.command_line("check", []),
        input=learn.spec_json(config),
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
        cwd=directory(),
    )
    try:
        found = json.loads(done.stdout)
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get("schema") != 1:
        yield Finding("data", "failed", _last_words(done))
        return
    yield from data_findings(found)


def _last_words(done: subprocess.CompletedProcess[str]) -> str:
    """Why there is no document."""
    if done.returncode == -signal.SIGKILL:
        return "the check was killed (SIGKILL), most likely by the kernel for lack of memory"
    said = [line for line in done.stderr.splitlines() if line and not line.startswith("[")]
    return said[-1].removeprefix("error: ") if said else f"the check ended with exit code {done.returncode}"


def data_findings(found: dict[str, Any]) -> Iterator[Finding]:
    """The document of gossipseg.learn.commands.check as findings."""
    problems = found.get("problems", [])
    about_device = [p for p in problems if str(p.get("key") or "").startswith("device")]
    about_model = [p for p in problems if p.get("part") == "model"]
    about_data = [p for p in problems if p not in about_device and p not in about_model]
    for row, found_there in (("device", about_device), ("model", about_model)):
        for problem in found_there:
            yield Finding(row, "failed", _sentence(problem), problem.get("remedy") or "")
    if found.get("device"):
        yield Finding("device", "ok", str(found["device"]))
    for problem in about_data[:MAX_PROBLEMS]:
        yield Finding("data", "failed", _sentence(problem), problem.get("remedy") or "")
    if len(about_data) > MAX_PROBLEMS:
        yield Finding("data", "failed", f"and {len(about_data) - MAX_PROBLEMS} more problems like these")
    for warning in found.get("warnings", []):
        yield Finding("data", "warning", str(warning))
    if not about_data:
        patients = found.get("patients", {})
        splits = ", ".join(
            f"{count} {name}"
            + (f" (of {patients[name]} patients)" if patients.get(name, count) != count else "")
            for name, count in found.get("splits", {}).items()
        )
        kept = _memory_text(found.get("memory"))
        yield Finding("data", "ok", f"{splits}; every case can be read{_kinds(found.get('kinds', {}))}{kept}")
        if division := found.get("division", {}).get("text"):
            yield Finding("data", "ok", f"splits: {division}")
    if found.get("pace"):
        yield Finding("round", "ok", _pace_text(found["pace"]))


def _kinds(kinds: dict[str, int]) -> str:
    """Number of cases of each kind."""
    return f" ({', '.join(f'{count} {kind}' for kind, count in kinds.items())})" if kinds else ""


def _memory_text(memory: dict[str, Any] | None) -> str:
    """Memory that data.cache takes, and that is available."""
    if not memory or not memory.get("cache_bytes"):
        return ""
    free = memory.get("available_bytes")
    there = f" of {out.bytes_text(free)} free" if free is not None else ""
    return f"; kept in memory (data.cache): {out.bytes_text(memory['cache_bytes'])}{there}"


def _pace_text(pace: dict[str, Any]) -> str:
    """Expected duration of a round, and the memory of a step."""
    both = " of both models" if pace.get("models", 1) > 1 else ""
    memory = f" and {out.bytes_text(pace['step_bytes'])}" if pace.get("step_bytes") else ""
    fewer = "; `training.personal: none` trains one model" if pace.get("one_model_will_do") else ""
    return (
        f"a round of {pace['steps_per_round']} steps and the validation of {pace['validation_cases']} cases "
        f"will take about {out.duration_text(pace['round_s'])} here ({pace['step_s']:.2g} s{memory} a "
        f"step{both}, {pace['validation_case_s']:.2g} s a case){fewer}"
    )


def _sentence(problem: dict[str, Any]) -> str:
    place = ": ".join(str(problem[k]) for k in ("file", "key") if problem.get(k))
    value = f" = {problem['value']!r}" if problem.get("value") is not None and problem.get("key") else ""
    return f"{place}{value}: {problem['problem']}" if place else str(problem["problem"])
