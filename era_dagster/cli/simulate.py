"""`era simulate`: a simulated embedding server on a loopback port, as slow, as strict and as broken as asked for."""

import asyncio
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import click
import orjson

from era_dagster.cli.output import stdout
from era_dagster.domain.errors import ConfigurationError
from era_dagster.simulation.spec import Course, course_from, value_from_words


@click.command()
@click.option("--port", type=click.IntRange(0, 65535), default=11435, show_default=True, help="0: any free one.")
@click.option("--model", default="simulated", show_default=True, help="The only model it serves.")
@click.option("--dimension", type=int, default=768, show_default=True, help="Numbers in a vector.")
@click.option("--discipline", type=click.Choice(["texts", "requests", "batching"]), help="What takes a slot.")
@click.option("--slots", type=int, help="Texts (or requests) worked on at once. Ollama has one.")
@click.option("--seconds-per-text", type=float, help="Work on one text.")
@click.option("--rtt-seconds", type=float, help="The way there and back.")
@click.option("--cold-start-seconds", type=float, help="What the first request waits for the model to load.")
@click.option("--queue-limit", type=int, help="More waiting requests than this get 503.")
@click.option("--texts-per-second", type=float, help="More than this get 429.")
@click.option(
    "--retry-after", type=click.Choice(["none", "seconds", "date", "milliseconds"]), help="How a 429 says so."
)
@click.option("--spec", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Its fields, and changes.")
@click.option("--set", "pairs", multiple=True, metavar="NAME=VALUE", help="Any other field; repeatable.")
@click.option("--api-key", help="Refuse requests without this bearer token.")
@click.option("--seed", type=int, default=0, show_default=True, help="Chance, made repeatable.")
@click.option("--while-stdin-open", is_flag=True, help="End when standard input closes, as with its parent.")
@click.option("--json", "as_json", is_flag=True, help="Print the URL as one line of JSON.")
def simulate(
    port: int,
    model: str,
    dimension: int,
    spec: Path | None,
    pairs: tuple[str, ...],
    api_key: str | None,
    seed: int,
    while_stdin_open: bool,
    as_json: bool,
    **friendly: Any,
) -> int:
    """Serve deterministic vectors like an Ollama (and OpenAI) server, until Ctrl-C.

    GET /api/simulation tells what it counted and the most it could have given; POST there starts another course.

    \b
    era simulate --seconds-per-text 0.02
    era simulate --slots 4 --set share_500=0.02 --set jitter=0.3
    era simulate --spec server.json      {"slots": 4, "changes": [[10, {"slots": 1}]]}
    """
    course = _course(spec, pairs, {name: value for name, value in friendly.items() if value is not None})

    async def serve() -> None:
        from era_dagster.simulation.http import listen
        from era_dagster.simulation.server import SimulatedServer

        server = SimulatedServer(course, model=model, dimension=dimension, api_key=api_key, seed=seed)
        listener, url = await listen(server, port)
        try:
            if as_json:
                sys.stdout.write(json.dumps({"url": url, "model": model, "dimension": dimension}) + "\n")
            else:
                stdout.print(f"Model {model}, {dimension} dimensions, at {url} until Ctrl-C", markup=False)
            sys.stdout.flush()
            await _until_told(while_stdin_open)
        finally:
            # Not `async with`: from Python 3.12 on its end waits until the last client hangs up.
            listener.close()

    try:
        asyncio.run(serve())
    except KeyboardInterrupt:
        if not as_json:
            stdout.print("Stopped.")
    return 0


def _course(path: Path | None, pairs: tuple[str, ...], friendly: dict[str, Any]) -> Course:
    """The file's course, with the fields named on the command line in place of its first ones."""
    given: dict[str, Any] = {}
    if path is not None:
        try:
            given = orjson.loads(path.read_bytes())
        except orjson.JSONDecodeError as error:
            raise ConfigurationError(f"{path} is no JSON: {error}.") from error
        if not isinstance(given, dict):
            raise ConfigurationError(f"{path} holds no JSON object.")
    for pair in pairs:
        name, equals, words = pair.partition("=")
        if not equals:
            raise ConfigurationError(f"--set {pair} is not NAME=VALUE.")
        given[name.strip().replace("-", "_")] = value_from_words(words)
    return course_from({**given, **friendly})


async def _until_told(while_stdin_open: bool) -> None:
    told = asyncio.Event()
    if while_stdin_open:
        loop = asyncio.get_running_loop()

        def watch() -> None:
            # Not through sys.stdin: a thread that waits in it would hold its lock when the interpreter ends.
            while os.read(0, 4096):
                pass
            loop.call_soon_threadsafe(told.set)

        threading.Thread(target=watch, daemon=True).start()
    await told.wait()
