"""The vector cache on a real PostgreSQL."""

import hashlib
import threading

import numpy as np

from era_dagster.storage.cache import PostgresVectorCache
from era_dagster.storage.database import Database
from era_dagster_tests.fakes.embedding_server import vector_of
from era_dagster_tests.pipeline.workbench import dump_tables


def key(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8")).digest()


def test_a_vector_comes_back_bit_for_bit(database: Database) -> None:
    cache = PostgresVectorCache(database, model="tiny")
    vectors = {key(text): vector_of(text, 384) for text in ("a", "b", "c")}
    cache.put_many(vectors)
    found = cache.get_many([key("b"), key("unknown"), key("a")])
    assert found.keys() == {key("a"), key("b")}
    for name, vector in found.items():
        assert vector.dtype == np.float32
        assert vector.tobytes() == vectors[name].tobytes()


def test_a_vector_that_is_known_stays_as_it_is(database: Database) -> None:
    cache = PostgresVectorCache(database, model="tiny")
    cache.put_many({key("a"): vector_of("a", 16)})
    before = dump_tables(database, versions=True)
    cache.put_many({key("a"): vector_of("other", 16)})
    assert dump_tables(database, versions=True) == before


def test_model_and_dimension_are_noted_with_each_vector(database: Database) -> None:
    PostgresVectorCache(database, model="tiny").put_many({key("a"): vector_of("a", 16)})
    with database.connection() as connection:
        assert connection.execute("SELECT model, dimension, length(embedding) FROM embedding_cache").fetchall() == [
            ("tiny", 16, 64)
        ]


def test_nothing_asked_and_nothing_made_is_no_statement(database: Database) -> None:
    database.close()
    cache = PostgresVectorCache(database, model="tiny")
    assert cache.get_many([]) == {}
    cache.put_many({})


def test_writers_of_the_same_keys_in_any_order_do_not_deadlock(database: Database) -> None:
    cache = PostgresVectorCache(database, model="tiny")
    vectors = {key(str(number)): np.ones(1, dtype=np.float32) for number in range(4000)}
    failures: list[BaseException] = []

    def write(order: list[bytes]) -> None:
        try:
            cache.put_many({name: vectors[name] for name in order})
        except Exception as error:  # noqa: BLE001 - to be told by the main thread
            failures.append(error)

    orders = [sorted(vectors), sorted(vectors, reverse=True), list(vectors), list(vectors)[::-1]]
    threads = [threading.Thread(target=write, args=(order,)) for order in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(cache.get_many(list(vectors))) == 4000
