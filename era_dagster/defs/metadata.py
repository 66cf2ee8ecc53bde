"""What people see of chapters and runs in the UI: plain numbers and tables of the pipeline as Dagster's metadata.

Dagster draws every number of an asset over its materializations by itself; pictures are Markdown with an SVG inside, on the
unpartitioned asset only, because metadata is copied into each event.
"""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from era_dagster.pipeline.watch import RunReport
from era_dagster.telemetry.charts import chunk_chars_svg, count_table, decisions_svg, image


def chapter_metadata(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of one stage of one chapter."""
    found = dict(numbers)
    if "domains" in found:
        found["domains"] = dg.MetadataValue.md(count_table(("domain", "entries"), found["domains"]))
    return found


def run_metadata(report: RunReport, domains: Mapping[str, int]) -> dict[str, Any]:
    """The numbers and pictures of one run; `domains` are the entries the knowledge base holds now, by domain."""
    receipt, stats = report.receipt, report.stats
    seconds = max(report.seconds, 1e-3)
    found: dict[str, Any] = {
        "chapters": receipt.chapters_seen,
        "chapters_stored": receipt.chapters_stored,
        "chapters_unchanged": receipt.chapters_unchanged,
        "chapters_failed": len(receipt.chapters_failed),
        "items": receipt.items.seen,
        "items_per_second": round(receipt.items.seen / seconds, 1),
        "dead_letters": receipt.items.dead,
        "cache_hits": receipt.texts_from_cache,
        "seconds": round(seconds, 2),
    }
    if stats is not None:
        found |= {
            "requests": stats.requests,
            "texts_embedded": stats.embedded,
            "tokens": stats.tokens,
            "retries": stats.retries,
            "refusals": stats.refusals,
            **{
                f"request_{name}_ms": round(value * 1000.0, 2)
                for name, value in (
                    ("p50", stats.latency.p50_seconds),
                    ("p95", stats.latency.p95_seconds),
                    ("p99", stats.latency.p99_seconds),
                )
                if value is not None
            },
        }
    if report.decisions:
        plot = decisions_svg(report.decisions, began_at=report.began_at)
        found["controller"] = dg.MetadataValue.md(image(plot, "What the controller allowed and saw over the run"))
    if report.chunk_chars:
        found["chunk_lengths"] = dg.MetadataValue.md(image(chunk_chars_svg(report.chunk_chars), "Chunks by length"))
    if domains:
        found["domain_table"] = dg.MetadataValue.md(count_table(("domain", "entries"), domains))
    if receipt.chapters_failed:
        found["failed_chapters"] = dg.MetadataValue.json(dict(receipt.chapters_failed))
    return {**found, "receipt": dg.MetadataValue.json(receipt.as_json())}
