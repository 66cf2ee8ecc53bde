"""`era metrics`: one page for Prometheus with the figures of all runs."""

import signal
import threading

import click

from era_dagster.cli.output import settings_from_environment, stderr, stdout
from era_dagster.domain.errors import DatabaseUnavailable


@click.command()
@click.option("--port", type=click.IntRange(0, 65535), help="0: any free one. Default: ERA_PROMETHEUS_PORT (8000).")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all.")
@click.option("--once", is_flag=True, help="Print the page and end.")
def metrics(port: int | None, host: str, once: bool) -> int:
    """Serve metrics on http://HOST:PORT/metrics until stopped. Reads the database, so that it shows every run.

    A page without figures (era_database_up 0) is served while the database is away.
    """
    from era_dagster.pipeline.scrape import scraper
    from era_dagster.storage.database import database_url
    from era_dagster.storage.migrations import migrate
    from era_dagster.telemetry.exposition import address, page, serve

    settings = settings_from_environment()
    url = database_url(settings)
    try:
        migrate(url)
    except DatabaseUnavailable:
        if once:
            raise
    read = scraper(settings, url)
    if once:
        stdout.print(page(read), end="", markup=False)
        return 0
    server, thread = serve(read, host=host, port=settings.prometheus_port if port is None else port)
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.set())
    stderr.print(f"Metrics on http://{address(host, server.server_port)}/metrics (Ctrl-C ends)", markup=False)
    try:
        while not stopped.wait(1.0):
            pass
    except KeyboardInterrupt:
        pass
    server.shutdown()
    server.server_close()
    thread.join()
    return 0
