"""Pictures as Dagster's metadata: Markdown with the SVG inside it, which its UI shows in place or behind a link."""

from collections.abc import Sequence

import dagster as dg

from era_dagster.domain.errors import ConfigurationError
from era_dagster.pipeline.knowledge_map import draw_map
from era_dagster.pipeline.map_svg import domains_svg
from era_dagster.storage.database import Database
from era_dagster.storage.map_rows import DomainCount, domain_counts
from era_dagster.telemetry.charts import image


def domains_picture(counts: Sequence[DomainCount]) -> dg.MarkdownMetadataValue:
    """The entries by domain and category, as bars."""
    return dg.MetadataValue.md(image(domains_svg(counts), "entries by domain"))


def knowledge_pictures(database: Database) -> dict[str, dg.MarkdownMetadataValue | dg.TextMetadataValue]:
    """The bars and the map; where the map cannot be drawn, the reason stands in its place. Takes seconds."""
    try:
        drawn: dg.MarkdownMetadataValue | dg.TextMetadataValue = dg.MetadataValue.md(
            image(draw_map(database), "map of the entries")
        )
    except ConfigurationError as error:
        drawn = dg.MetadataValue.text(str(error))
    return {"entries_by_domain": domains_picture(domain_counts(database)), "map": drawn}
