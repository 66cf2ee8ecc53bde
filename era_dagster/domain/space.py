"""The embedding space: the model whose vectors may be compared with each other."""

from dataclasses import dataclass, replace


def canonical_model_name(model: str) -> str:
    """One spelling for one model: Ollama's implied `:latest` is left out."""
    return model.removesuffix(":latest")


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

    def same_model(self, other: "Space") -> bool:
        """Whether their vectors are interchangeable, however either spells the model's name: stamps keep the spelling."""
        one, two = (replace(each, model=canonical_model_name(each.model)) for each in (self, other))
        return one.stamp == two.stamp
