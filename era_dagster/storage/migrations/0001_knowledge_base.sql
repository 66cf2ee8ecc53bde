-- The knowledge base: what was dropped, what was read, what was made of it.
-- The vector tables themselves are not here: they need the model's dimension and live in schema "vectors" (storage/spaces.py).

CREATE EXTENSION IF NOT EXISTS vector;

CREATE FUNCTION similarity(a halfvec, b halfvec) RETURNS double precision
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE RETURN 1 - (a <=> b);
CREATE FUNCTION similarity(a vector, b vector) RETURNS double precision
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE RETURN 1 - (a <=> b);

-- Intake: one row per book folder or file that was ever looked at, and one per chapter it holds.
CREATE TABLE drop_sources (
    source_path text PRIMARY KEY,            -- absolute, as the system names it
    folder text NOT NULL,                    -- the folder it lies in
    signature text NOT NULL,                 -- names, sizes and times of its files: same signature, no reading
    sha256 bytea,                            -- of the bytes of its files, in order
    priority integer,
    state text NOT NULL CHECK (state IN ('read', 'waiting', 'unreadable')),
    reason text NOT NULL DEFAULT '',
    seen_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX drop_sources_folder ON drop_sources (folder);

CREATE TABLE drop_chapters (
    partition_key text PRIMARY KEY,
    source_path text NOT NULL REFERENCES drop_sources ON DELETE CASCADE,
    content_hash bytea NOT NULL,             -- of what the files say now
    gone boolean NOT NULL DEFAULT false,     -- the chapter left the files; its rows still have to
    attempts integer NOT NULL DEFAULT 0,     -- runs requested for this content
    requested_at timestamptz,
    failure text                             -- why the last run could not finish it
);
CREATE INDEX drop_chapters_source ON drop_chapters (source_path);

CREATE TABLE quarantine (                    -- records and files that cannot be read, until they can
    source_path text NOT NULL REFERENCES drop_sources ON DELETE CASCADE,
    file text NOT NULL,
    location text NOT NULL,
    reason text NOT NULL,
    first_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (source_path, file, location, reason)
);

-- Provenance and text of every chapter, with one stamp per stage: a stage is done when its stamp is what it would be now.
CREATE TABLE doctrine_sources (
    partition_key text PRIMARY KEY,
    book text NOT NULL,                      -- the original folder name
    book_slug text NOT NULL,
    chapter integer NOT NULL,
    title text,
    path text NOT NULL,
    file_hash bytea,
    text text NOT NULL,
    content_hash bytea NOT NULL,
    notes jsonb NOT NULL DEFAULT '[]',
    unusable jsonb NOT NULL DEFAULT '[]',
    repairs jsonb NOT NULL DEFAULT '{}',
    entry_count integer NOT NULL,
    pair_count integer NOT NULL,
    chunk_count integer,
    dead_count integer,
    model text,
    run_id text NOT NULL,
    chapters_stamp text,
    chunks_stamp text,
    embeddings_stamp text,
    vector_tables_stamp text,
    minister_files_stamp text,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (book_slug, chapter)
);

CREATE TABLE minister_domains (
    domain text PRIMARY KEY,
    spellings text[] NOT NULL DEFAULT '{}',
    table_name text NOT NULL UNIQUE,
    changed_at timestamptz,                  -- when its entries last changed
    rendered_at timestamptz                  -- the changed_at its files show; different: the files are due
);

CREATE TABLE minister_entries (              -- one row per (entry, domain)
    doctrine_id uuid NOT NULL,
    domain text NOT NULL REFERENCES minister_domains,
    category text NOT NULL CHECK (category IN ('principles', 'rules', 'claims', 'warnings')),
    position integer NOT NULL,
    text text NOT NULL,
    book text NOT NULL,
    chapter integer NOT NULL,
    weight real NOT NULL DEFAULT 1.0,
    embedding_id uuid NOT NULL,              -- doctrine_id of the row in doctrine_embeddings_all
    content_hash bytea NOT NULL,             -- of the text
    details jsonb NOT NULL DEFAULT '{}',
    partition_key text NOT NULL REFERENCES doctrine_sources ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (doctrine_id, domain)
);
CREATE INDEX minister_entries_domain ON minister_entries (domain, category);
CREATE INDEX minister_entries_partition ON minister_entries (partition_key);

CREATE TABLE chapter_chunks (
    partition_key text NOT NULL REFERENCES doctrine_sources ON DELETE CASCADE,
    position integer NOT NULL,
    start_offset integer NOT NULL,           -- code points into doctrine_sources.text
    end_offset integer NOT NULL,
    text text NOT NULL,
    text_hash bytea NOT NULL,
    PRIMARY KEY (partition_key, position)
);

-- Vectors by content: float32, little-endian, normalised. The key covers model, dimension, prefix and text.
CREATE TABLE embedding_cache (
    cache_key bytea PRIMARY KEY,
    model text NOT NULL,
    dimension integer NOT NULL,
    embedding bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
ALTER TABLE embedding_cache ALTER COLUMN embedding SET STORAGE EXTERNAL;

CREATE TABLE dead_letters (
    dead_letter_id uuid PRIMARY KEY,         -- uuid5 of stage, partition and payload: the same failure is the same letter
    stage text NOT NULL,
    partition_key text NOT NULL,
    payload text NOT NULL,
    error_class text NOT NULL,
    message text NOT NULL,
    fingerprint text NOT NULL,               -- equal for equal errors
    attempts integer NOT NULL,
    state text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'resolved')),
    first_at timestamptz NOT NULL DEFAULT now(),
    last_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX dead_letters_partition ON dead_letters (partition_key) WHERE state = 'open';

CREATE TABLE embedding_spaces (              -- which model's vectors the vector tables hold
    space_id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    state text NOT NULL CHECK (state IN ('live', 'building', 'retired')),
    schema_name text NOT NULL UNIQUE,
    provider text NOT NULL,
    model text NOT NULL,
    digest text,
    dimension integer NOT NULL,
    document_prefix text NOT NULL,
    query_prefix text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX embedding_spaces_one_live ON embedding_spaces (state) WHERE state = 'live';

ALTER TABLE drop_chapters SET (autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE minister_domains SET (fillfactor = 50);
