-- Dagster keeps its runs and events in a database of its own: both sides use a table called alembic_version or may do so.
CREATE DATABASE era_dagster;
