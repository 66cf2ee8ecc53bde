"""The embedding space: the model whose vectors may be compared with each other."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """A model as the database records it. `dimension` is the length of its vectors; prefixes precede every text."""

    provider: str
    model: str
    digest: str | None
    dimension: int
    document_prefix: str
    query_prefix: str

    @property
    def stamp(self) -> str:
        """What a stage's stamp says of the model: equal stamps mean interchangeable vectors."""
        return f"{self.model}@{self.digest or '-'}/{self.dimension}/{self.document_prefix}"
