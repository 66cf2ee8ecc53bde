"""What a model wants done to a text before it is sent: its task prefix, and lower case for uncased models.

Known by the model's name, overridable by configuration. No servers and no vectors here.
"""

import unicodedata
from dataclasses import dataclass
from typing import Literal

Role = Literal["document", "query"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProfile:
    """Prefixes by role and case handling of one model.

    `uncased`: the vocabulary is lower-case without accents. Sending such text is no change for a correct server and
    cures Ollama 0.13.1 to 0.24, which read every capitalised or accented word as unknown (ollama issues 13942, 15609).
    """

    document_prefix: str = ""
    query_prefix: str = ""
    uncased: bool = False

    def prefix(self, role: Role) -> str:
        """The task prefix for stored texts or for queries."""
        return self.document_prefix if role == "document" else self.query_prefix

    def normalised(self, text: str) -> str:
        """The text without prefix, as this model shall read it."""
        if not self.uncased:
            return text
        lowered = text.lower()
        if lowered.isascii():
            return lowered
        return "".join(
            character for character in unicodedata.normalize("NFD", lowered) if unicodedata.category(character) != "Mn"
        )


def model_profile(model: str, *, document_prefix: str | None = None, query_prefix: str | None = None) -> ModelProfile:
    """The profile of a model by its name, in any registry's spelling; a prefix that is not None wins.

    nomic-embed-text wants its prefixes (its model card; without them retrieval falls below MiniLM's). Its version 2 is
    multilingual and cased.
    """
    name = model.lower()
    nomic = "nomic-embed-text" in name
    uncased = (nomic and "-v2" not in name) or "all-minilm" in name
    return ModelProfile(
        document_prefix=("search_document: " if nomic else "") if document_prefix is None else document_prefix,
        query_prefix=("search_query: " if nomic else "") if query_prefix is None else query_prefix,
        uncased=uncased,
    )
