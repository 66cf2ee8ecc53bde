"""`era map`: a picture of the knowledge base as a file."""

from pathlib import Path

import click

from era_dagster.cli.knowledge_base import open_knowledge_base
from era_dagster.cli.options import no_dash
from era_dagster.cli.output import print_json, settings_from_environment, stderr, stdout
from era_dagster.pipeline.knowledge_map import draw_domains, draw_map
from era_dagster.storage.atomic_files import new_file


@click.command()
@click.argument("file", type=click.Path(path_type=Path), callback=no_dash)
@click.option("--domains", is_flag=True, help="The domains as bars instead: entries by domain and category.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def map(file: Path, domains: bool, overwrite: bool, as_json: bool) -> int:
    """Draw the entries as a map, near where their meaning is near, in the colours of their domains; FILE is an SVG.

    Needs scikit-learn (`pip install "era-dagster[map]"`), --domains does not. A browser shows the file.
    """
    with (
        stderr.status("Drawing ..."),
        new_file(file, overwrite=overwrite) as target,
        open_knowledge_base(settings_from_environment()) as database,
    ):
        picture = (draw_domains if domains else draw_map)(database).encode("utf-8")
        target.write(picture)
    if as_json:
        print_json({"path": file, "bytes": len(picture)})
    else:
        stdout.print(f"{file}: {len(picture) / 1000:,.0f} kB; a browser shows it.", markup=False)
    return 0
