"""A persona that reads up before it speaks: `era demo` first, then `python examples/persona.py "Should I sign today?"`."""

import sys
from dataclasses import dataclass, field

from era_dagster.domain.errors import EraError
from era_dagster.knowledge import KnowledgeBase
from era_dagster.storage.search import SearchHit


@dataclass
class Persona:
    """`domain` bounds where it reads (None: everywhere); `doctrine_context` is what it has read last."""

    name: str
    domain: str | None = None
    doctrine_context: list[SearchHit] = field(default_factory=list)

    def prompt(self, question: str) -> str:
        """What a language model would be given."""
        read = "\n".join(
            f"- {hit.text} ({hit.category}; {hit.book}, chapter {hit.chapter})" for hit in self.doctrine_context
        )
        return f"You are {self.name}. You hold to this:\n{read or '- nothing that bears on it'}\n\nQuestion: {question}"


def main() -> int:
    """Look up what bears on the question, and print the prompt; exit code 1 with a sentence when that fails."""
    question = " ".join(sys.argv[1:]) or "When should I wait before I decide?"
    persona = Persona("the counsellor")
    try:
        with KnowledgeBase.open() as knowledge:
            knowledge.enrich_context_with_doctrine(persona, question, top_k=3)
    except EraError as error:
        print(f"{error.message} {error.hint}", file=sys.stderr)
        return 1
    print(persona.prompt(question))
    return 0


if __name__ == "__main__":
    sys.exit(main())
