"""Servers drawn at random: what the controller is judged on must not be in any file.

Each seed is one server of one of ten kinds, with its speed, its fixed costs and its texts drawn over orders of magnitude; or,
drawn as `slow`, one that takes as long for a text as is aimed at, varies much, and works on several at a time; as `rates`,
one that refuses what is over a rate of which it says nothing; as `costly`, one that spends 5 to 100 ms on a request whatever
is in it; as `windows`, one that gives its rate by the window, of one to twenty seconds, and may say so; or, as `busy`, one
that refuses what it has no room for, or says 503 and means a rate, or nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from random import Random
from typing import Any

from era_dagster.simulation.spec import Course, ServerSpec
from era_dagster_tests.bench.engine import Texts

KINDS = ("serial", "texts", "requests", "batching", "batching", "inflating", "step", "remote", "tail", "queue")
BY_SLOT = ("texts", "requests")
CHANGE_SECONDS = 30.0
FASTEST = 1200.0
"""Texts a second; more is more than a client on two cores can take anyway."""
TIMES = ("seconds_per_text", "seconds_per_token", "seconds_per_request", "step_seconds")


def draw(seed: int) -> tuple[str, Course, Texts]:
    """(kind, server, texts) of this seed."""
    random = Random(seed)
    kind = random.choice(KINDS)
    mean = random.choice([20, 60, 150, 300])
    cv = random.choice([0.0, 0.0, 0.5, 1.0])
    text_seconds = 10 ** random.uniform(-3.0, -0.8)
    fixed = random.choice([0.1, 0.5, 1.0])
    fields: dict[str, Any] = {
        "seconds_per_text": text_seconds * fixed,
        "seconds_per_token": text_seconds * (1 - fixed) / mean,
        "seconds_per_request": 10 ** random.uniform(-4, -2.3),
        "rtt_seconds": 10 ** random.uniform(-3.5, -2),
        "jitter": random.choice([0.0, 0.05, 0.2, 0.4]),
    }
    changes: tuple[tuple[float, dict[str, Any]], ...] = ()
    if kind == "serial":
        fields |= {"discipline": "texts", "slots": 1}
    elif kind == "texts":
        fields |= {"discipline": "texts", "slots": random.choice([2, 4, 8, 16, 32])}
    elif kind == "requests":
        fields |= {"discipline": "requests", "slots": random.choice([1, 2, 4, 8, 16, 32])}
    elif kind == "batching":
        fields |= {"discipline": "batching", "step_seconds": 10 ** random.uniform(-2.3, -1)}
        fields |= {"step_tokens": random.choice([2048, 8192, 32768])}
        fields["seconds_per_text"] /= 10
        fields["seconds_per_token"] /= 10
    elif kind == "inflating":
        slots = random.choice([4, 8, 16])
        fields |= {"discipline": random.choice(BY_SLOT), "slots": slots}
        fields |= {"knee": slots * random.choice([2, 4, 8]), "inflation": random.choice([0.3, 1.0])}
    elif kind == "step":
        slots = random.choice([4, 8, 16])
        fields |= {"discipline": random.choice(BY_SLOT), "slots": slots}
        changes = ((20.0, {"slots": max(1, slots // 4)}), (40.0, {"slots": slots}))
    elif kind == "remote":
        fields |= {"discipline": random.choice(BY_SLOT), "slots": random.choice([4, 16])}
        fields |= {"rtt_seconds": random.uniform(0.05, 0.3)}
    elif kind == "tail":
        fields |= {"discipline": random.choice(BY_SLOT), "slots": random.choice([1, 4, 16])}
        fields |= {"tail_share": 0.02, "tail_factor": 8.0}
    else:
        fields |= {"discipline": random.choice(BY_SLOT), "slots": random.choice([1, 4, 8])}
        fields |= {"queue_limit": random.choice([4, 8, 16, 32])}
    limit = ServerSpec(**fields).texts_per_second_limit(mean)
    if limit > FASTEST:
        for name in TIMES:
            fields[name] = fields.get(name, 0.0) * limit / FASTEST
    return kind, Course(spec=ServerSpec(**fields), changes=changes), Texts(mean_tokens=mean, cv=cv)


def draw_costly(seed: int) -> tuple[str, Course, Texts]:
    """A server of any kind that spends 5 to 100 ms on a request, whatever is in it: few large ones are what it does best."""
    kind, course, texts = draw(seed)
    each = 10 ** Random(f"costly {seed}").uniform(-2.3, -1.0)
    return kind, replace(course, spec=replace(course.spec, seconds_per_request=each)), texts


def draw_slow(seed: int) -> tuple[str, Course, Texts]:
    """A server whose single texts take a third to a half of the latency target, and vary."""
    random = Random(seed)
    spec = ServerSpec(
        discipline="requests",
        slots=random.choice([4, 8, 32]),
        seconds_per_text=random.uniform(0.16, 0.25),
        seconds_per_token=0.0,
        seconds_per_request=0.003,
        rtt_seconds=0.001,
        jitter=random.choice([0.2, 0.4, 0.6]),
    )
    return f"slow, {spec.slots} slots", Course(spec=spec), Texts(mean_tokens=20.0)


def draw_rates(seed: int) -> tuple[str, Course, Texts]:
    """A rate over two orders of magnitude, by requests, texts or tokens, that in two of three changes half-way."""
    random = Random(seed)
    counted = random.choice(["requests", "texts", "tokens"])
    rate = 10 ** (random.uniform(-0.3, 1.7) if counted == "requests" else random.uniform(0.7, 2.7))
    change = random.choice([1.0, 0.4, 2.5])
    mean, slots = random.choice([20, 60, 150]), random.choice([4, 16])
    unit = mean if counted == "tokens" else 1
    most = max(1.0, change) * rate * (random.choice([4, 16]) if counted == "requests" else 1)
    spec = ServerSpec(
        discipline=random.choice(BY_SLOT),
        slots=slots,
        seconds_per_text=min(0.1, slots / most / random.uniform(1.5, 4.0)),
        seconds_per_request=0.003,
        rtt_seconds=10 ** random.uniform(-3.0, -1.3),
        jitter=random.choice([0.05, 0.2]),
        burst_seconds=random.choice([0.5, 1.0, 2.0, 10.0]),
        retry_after=random.choice(["none", "none", "seconds"]),
    )
    limited = {f"{counted}_per_second": unit * rate}
    changed = {f"{counted}_per_second": unit * rate * change}
    intent = f"{rate:.3g} {'texts in tokens' if counted == 'tokens' else counted}/s, {spec.burst_seconds:g} s"
    course = Course(spec=replace(spec, **limited), changes=((CHANGE_SECONDS, changed),) if change != 1.0 else ())
    return intent + (f", then x {change:g}" if change != 1.0 else ""), course, Texts(mean_tokens=mean)


def draw_windows(seed: int) -> tuple[str, Course, Texts]:
    """A rate that comes all at once when a window begins, and that every third server tells."""
    _, course, texts = draw_rates(seed)
    random = Random(f"window {seed}")
    seconds, announce = random.choice([1.0, 5.0, 20.0]), random.choice([False, False, True])
    spec = replace(course.spec, window_seconds=seconds, announce=announce)
    rates = {"requests": spec.requests_per_second, "texts": spec.texts_per_second, "tokens": spec.tokens_per_second}
    (counted, rate), *_ = ((name, rate) for name, rate in rates.items() if rate is not None)
    intent = f"{rate * seconds:.3g} {counted} in {seconds:g} s"
    return intent + (", announced" if announce else ""), Course(spec=spec), texts


def draw_busy(seed: int) -> tuple[str, Course, Texts]:
    """A server that bounds the texts inside it, or the requests that wait, and refuses more with 503 or 429; of five, one has a
    rate that it calls 503, and one says 503 by chance."""
    random = Random(seed)
    means = random.choice(["room", "room", "room", "rate", "chance"])
    if means == "rate":
        intent, course, texts = draw_rates(seed)
        return f"503 for {intent}", replace(course, spec=replace(course.spec, rate_status=503)), texts
    slots = random.choice([1, 4, 16])
    mean = random.choice([20, 60, 150])
    text_seconds = 10 ** random.uniform(-2.5, -1.0)
    fields: dict[str, Any] = {
        "discipline": random.choice(["texts", "requests", "batching"]),
        "slots": slots,
        "seconds_per_text": text_seconds / 2.0,
        "seconds_per_token": text_seconds / 2.0 / mean,
        "seconds_per_request": 10 ** random.uniform(-3.5, -2.3),
        "rtt_seconds": 10 ** random.uniform(-3.5, -2.0),
        "jitter": random.choice([0.0, 0.05, 0.2]),
    }
    if fields["discipline"] == "batching":
        slots, fields["slots"] = 16, 1
        fields |= {"step_seconds": 10 ** random.uniform(-2.3, -1.3), "step_tokens": 8192}
        fields["seconds_per_text"] /= 10
        fields["seconds_per_token"] /= 10
    if means == "chance":
        fields["share_503"] = random.choice([0.05, 0.15, 0.3])
        intent = f"503 by chance, {fields['share_503']:g}"
    elif random.random() < 0.6:
        fields["most_inside"] = max(2, slots * random.choice([2, 4, 8, 16]))
        intent = f"{fields['most_inside']} texts inside"
    else:
        fields["queue_limit"] = random.choice([1, 2, 4, 8, 16])
        intent = f"{fields['queue_limit']} requests waiting"
    if means == "room":
        fields["full_status"] = random.choice([503, 429])
        intent += f", then {fields['full_status']}"
    limit = ServerSpec(**fields).texts_per_second_limit(mean)
    if limit > FASTEST:
        for name in TIMES:
            fields[name] = fields.get(name, 0.0) * limit / FASTEST
    texts = Texts(mean_tokens=mean, cv=random.choice([0.0, 0.5]))
    return f"{intent}, {fields['discipline']}", Course(spec=ServerSpec(**fields)), texts


DRAWN: Mapping[str, Callable[[int], tuple[str, Course, Texts]]] = {
    "any": draw,
    "costly": draw_costly,
    "slow": draw_slow,
    "rates": draw_rates,
    "windows": draw_windows,
    "busy": draw_busy,
}
"""What can be drawn, by the name it is asked for."""
