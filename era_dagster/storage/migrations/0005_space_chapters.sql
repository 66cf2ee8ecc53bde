-- Embedding spaces beside the live one: which chapters each holds, in which version of their texts.

CREATE TABLE space_chapters (
    space_id integer NOT NULL REFERENCES embedding_spaces ON DELETE CASCADE,
    partition_key text NOT NULL,             -- no reference: the rows of a chapter that is gone still have to leave
    fingerprint bytea NOT NULL,              -- of the texts its rows were made from, as in chapter_fingerprints
    dead jsonb NOT NULL DEFAULT '[]',        -- the texts the space's model could not embed, each with its reason
    written_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (space_id, partition_key)
);

-- Everything a chapter's rows in the vector tables are made from, as one hash; only chapters that have been chunked.
CREATE VIEW chapter_fingerprints AS
SELECT s.partition_key,
       sha256(convert_to(
           coalesce((SELECT string_agg(c.position || ' ' || encode(sha256(convert_to(c.text, 'UTF8')), 'hex'), ' '
                                       ORDER BY c.position)
                     FROM chapter_chunks AS c WHERE c.partition_key = s.partition_key), '')
           || '/' ||
           coalesce((SELECT string_agg(concat_ws(' ', e.doctrine_id, e.domain, e.category, e.weight, e.chapter,
                                                 encode(sha256(convert_to(e.book, 'UTF8')), 'hex'),
                                                 encode(sha256(convert_to(e.text, 'UTF8')), 'hex')), ' '
                                       ORDER BY e.doctrine_id, e.domain)
                     FROM minister_entries AS e WHERE e.partition_key = s.partition_key), ''),
           'UTF8')) AS fingerprint
FROM doctrine_sources AS s
WHERE s.chunk_count IS NOT NULL;
