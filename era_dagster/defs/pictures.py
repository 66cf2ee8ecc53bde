"""Pictures as Dagster's metadata: Markdown with the SVG inside it, which its UI shows in place or behind a link."""

import base64

import dagster as dg

from era_dagster.domain.errors import ConfigurationError
from era_dagster.pipeline.knowledge_map import draw_domains, draw_map
from era_dagster.storage.database import Database


def domains_picture(database: Database) -> dg.MarkdownMetadataValue:
    """The entries by domain and category, as bars."""
    return _picture("entries by domain", draw_domains(database))


def knowledge_pictures(database: Database) -> dict[str, dg.MarkdownMetadataValue | dg.TextMetadataValue]:
    """The bars and the map; where the map cannot be drawn, the reason stands in its place. Takes seconds."""
    try:
        drawn: dg.MarkdownMetadataValue | dg.TextMetadataValue = _picture("map of the entries", draw_map(database))
    except ConfigurationError as error:
        drawn = dg.MetadataValue.text(str(error))
    return {"entries_by_domain": domains_picture(database), "map": drawn}


def _picture(name: str, svg: str) -> dg.MarkdownMetadataValue:
    return dg.MetadataValue.md(f"![{name}](data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()})")
