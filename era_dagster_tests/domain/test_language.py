"""The language of a chapter, from its commonest words."""

import pytest

from era_dagster.domain.language import NO_LANGUAGE, language_of

PROSE = {
    "english": "The keeper of the lock wrote the level down every morning, and he said that a number without a date is a"
    " rumour which nobody should believe until it has been seen by at least two people.",
    "german": "Der Wärter schrieb jeden Morgen den Stand des Wassers auf, und er sagte, dass eine Zahl ohne Datum ein"
    " Gerücht ist, das man nicht glauben sollte, bevor es auch ein anderer gesehen hat.",
    "french": "Le gardien de l'écluse notait le niveau de l'eau tous les matins, et il disait que les chiffres sans date ne"
    " sont pas des faits mais une rumeur qui court dans la ville.",
    "spanish": "El guarda de la esclusa anotaba el nivel del agua todas las mañanas y decía que un número sin fecha es un"
    " rumor que no se debe creer hasta que lo haya visto otra persona.",
    "italian": "Il custode della chiusa scriveva ogni mattina il livello dell'acqua e diceva che un numero senza data è una"
    " voce che non si deve credere, anche se la ripete tutta la città.",
    "portuguese": "O guarda da eclusa anotava o nível da água todas as manhãs e dizia que um número sem data não é mais do"
    " que um rumor em que ninguém deve acreditar, mas que os outros repetem.",
    "dutch": "De wachter van de sluis schreef elke morgen het peil van het water op en hij zei dat een getal zonder datum"
    " niet meer is dan een gerucht dat je pas gelooft als ook een ander het ziet.",
    "russian": "Смотритель шлюза каждое утро записывал уровень воды и говорил, что число без даты — это слух, который не"
    " стоит принимать на веру, но все его повторяют, а он бы так не сделал.",
}


@pytest.mark.parametrize("language", PROSE)
def test_two_sentences_of_prose_tell_their_language(language: str) -> None:
    assert language_of(PROSE[language]) == language


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The end.",
        "12 345 678 " * 20,
        "ThePathtoWealthandotherrun-togetherwordsthatanOCRmade. " * 10,
        "水 火 土 風 " * 20,
    ],
)
def test_a_text_that_tells_nothing_is_stemmed_in_no_language(text: str) -> None:
    assert language_of(text) == NO_LANGUAGE
