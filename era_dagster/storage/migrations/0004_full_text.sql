-- Full text search over entries and chunks, stemmed in the language each chapter is written in.

-- Immutable in truth as long as nobody edits PostgreSQL's own dictionaries; the cast from text is what hides it. A
-- tsvector holds at most 1 MB, so of an absurdly long text only the beginning can be found by its words.
CREATE FUNCTION searchable_words(language text, body text) RETURNS tsvector
    LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN to_tsvector(language::regconfig, left(body, 100000));

-- A text search configuration such as 'english'; NULL: stored before languages were looked at.
ALTER TABLE doctrine_sources ADD COLUMN language text;
CREATE INDEX doctrine_sources_language ON doctrine_sources (language);

-- Ranking reads the words of many rows: in the row and not compressed they are read twice as fast.
ALTER TABLE minister_entries SET (toast_tuple_target = 8160);
ALTER TABLE chapter_chunks SET (toast_tuple_target = 8160);

ALTER TABLE minister_entries
    ADD COLUMN language text NOT NULL DEFAULT 'simple',
    ADD COLUMN words tsvector GENERATED ALWAYS AS (searchable_words(language, text)) STORED;
CREATE INDEX minister_entries_words ON minister_entries USING gin (words);

ALTER TABLE chapter_chunks
    ADD COLUMN language text NOT NULL DEFAULT 'simple',
    ADD COLUMN words tsvector GENERATED ALWAYS AS (searchable_words(language, text)) STORED;
CREATE INDEX chapter_chunks_words ON chapter_chunks USING gin (words);
