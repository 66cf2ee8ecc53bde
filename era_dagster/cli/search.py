"""`era search`: a question in, the nearest doctrine or passages out."""

from dataclasses import asdict
from typing import Literal

import click

from era_dagster.cli.output import print_json, settings_from_environment, stdout
from era_dagster.domain.doctrine import CATEGORIES
from era_dagster.settings import Settings


@click.command()
@click.argument("text", nargs=-1, required=True)
@click.option("--domain", "-d", help="Only this domain, in any spelling.")
@click.option("--category", "-c", type=click.Choice(CATEGORIES), help="Only this category.")
@click.option("--book", help="Only this book (its original name).")
@click.option(
    "--in", "within", type=click.Choice(["entries", "chunks"]), default="entries", help="Doctrine or chapter text."
)
@click.option("--hybrid", is_flag=True, help="Count the words of TEXT too: for names, numbers and rare words.")
@click.option("-k", "top_k", type=click.IntRange(1, 1000), default=5, show_default=True, help="How many results.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
def search(
    text: tuple[str, ...],
    domain: str | None,
    category: str | None,
    book: str | None,
    within: Literal["entries", "chunks"],
    hybrid: bool,
    top_k: int,
    as_json: bool,
) -> int:
    """Find what the books say about TEXT, a question or a sentence."""
    settings = settings_from_environment()
    return show_results(
        settings,
        " ".join(text),
        domain=domain,
        category=category,
        book=book,
        within=within,
        hybrid=hybrid,
        top_k=top_k,
        as_json=as_json,
    )


def show_results(
    settings: Settings,
    text: str,
    *,
    domain: str | None = None,
    category: str | None = None,
    book: str | None = None,
    within: Literal["entries", "chunks"] = "entries",
    hybrid: bool = False,
    top_k: int = 5,
    as_json: bool = False,
) -> int:
    """Search and print; returns the exit code (0 also when nothing was found)."""
    from era_dagster.knowledge import KnowledgeBase

    if not text.strip():
        raise click.UsageError("The text to search for is empty.")
    with KnowledgeBase.open(settings) as knowledge:
        hits = knowledge.search(
            text, domain=domain, category=category, book=book, within=within, top_k=top_k, hybrid=hybrid
        )
    if as_json:
        print_json({"query": text, "results": [asdict(hit) for hit in hits]})
        return 0
    if not hits:
        stdout.print("Nothing found. `era status` shows what the knowledge base holds.")
        return 0
    for rank, hit in enumerate(hits, start=1):
        where = f"{hit.book}, chapter {hit.chapter}"
        kind = f"{hit.category}: {', '.join(hit.domains)}" if hit.category else "passage"
        stdout.print(f"{rank}. [bold]{hit.score:.3f}[/bold]  ", end="")
        stdout.print(" ".join(hit.text.split()), markup=False)
        stdout.print(f"          {where} ({kind})", style="dim", markup=False)
    return 0
