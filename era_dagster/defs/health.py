"""Does Dagster's daemon live, and is the drop sensor on? Read from the instance; nothing is started."""

import time

import dagster as dg

from era_dagster.pipeline.health import Finding

DROP_SENSOR = "chapter_drop_sensor"
# A daemon writes a sign of life every 30 s.
_SILENT_SECONDS = 120.0
_START = "Start it: `dagster dev` in the folder of dagster.yaml, the service `daemon` in compose. `era ingest` works without."
_NEVER_SEEN = Finding(name="daemon", level="warning", found="never seen with this instance.", next_step=_START)
_NEVER_RUN = Finding(name="sensor", level="ok", found="on by default; no daemon has run it yet")


def never_started() -> list[Finding]:
    """Of an instance whose storage was not made yet."""
    return [_NEVER_SEEN, _NEVER_RUN]


def daemon(instance: dg.DagsterInstance) -> Finding:
    """The daemon runs the sensor, the run queue and the monitoring of runs; `era ingest` needs none of them."""
    statuses = instance.get_daemon_statuses()
    beats = {kind: status.last_heartbeat for kind, status in statuses.items() if status.required}
    now = time.time()
    seen = {kind: beat.timestamp for kind, beat in beats.items() if beat is not None}
    if not seen:
        return _NEVER_SEEN
    silent = {kind: now - when for kind, when in seen.items() if now - when > _SILENT_SECONDS}
    if silent:
        kind, seconds = max(silent.items(), key=lambda pair: pair[1])
        return Finding(
            name="daemon", level="warning", found=f"{kind} was last seen {_ago(seconds)} ago.", next_step=_START
        )
    wrong = next((beat.errors[0].message for beat in beats.values() if beat is not None and beat.errors), None)
    if wrong is not None:
        return Finding(
            name="daemon",
            level="failed",
            found=f"alive, with an error: {' '.join(wrong.split())[:200]}",
            next_step="Its page in the UI (Deployment, Daemons) has the whole of it.",
        )
    latest = now - max(seen.values())
    return Finding(name="daemon", level="ok", found=f"alive, last seen {_ago(latest)} ago")


def sensor(instance: dg.DagsterInstance) -> Finding:
    """Is the sensor that picks up drops on, and did its last tick go well?"""
    # One for each name that the code location was ever loaded under: the one that ticks is meant.
    found = [
        (instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=1), state)
        for state in instance.all_instigator_state()
        if state.instigator_name == DROP_SENSOR
    ]
    if not found:
        return _NEVER_RUN
    ticks, state = max(found, key=lambda each: each[0][0].timestamp if each[0] else 0.0)
    if state.status.value == "STOPPED":
        return Finding(
            name="sensor",
            level="warning",
            found="switched off: drops wait.",
            next_step="Switch it on in the UI under Automation.",
        )
    if ticks and ticks[0].status.value == "FAILURE" and ticks[0].error is not None:
        return Finding(
            name="sensor",
            level="failed",
            found=f"its last tick failed: {' '.join(ticks[0].error.message.split())[:200]}",
            next_step="Mend what it names; the next tick tries again by itself.",
        )
    when = f", last tick {_ago(time.time() - ticks[0].timestamp)} ago" if ticks else ""
    return Finding(name="sensor", level="ok", found=f"on{when}")


def _ago(seconds: float) -> str:
    for length, unit in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{max(seconds, 0):,.0f} s"
