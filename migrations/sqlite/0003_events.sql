-- What changed, for each merchant. A row is written in the transaction of its effect, without a position:
-- commits overtake one another, so a number given at the insert could be passed by a reader before it is
-- seen. The sequencer numbers what is committed; only numbered rows are shown.
CREATE TABLE events (
    event_id    TEXT    NOT NULL PRIMARY KEY,
    merchant    TEXT    NOT NULL,
    position    INTEGER,
    kind        TEXT    NOT NULL,
    object_type TEXT    NOT NULL,
    object_id   TEXT    NOT NULL,
    -- JSON without card data.
    body        TEXT    NOT NULL,
    created_at  INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX events_feed ON events (merchant, position) WHERE position IS NOT NULL;
CREATE INDEX events_unnumbered ON events (merchant, created_at, event_id) WHERE position IS NULL;

-- The last position given to each merchant. Who numbers changes this row first, so two never do at once.
CREATE TABLE event_heads (
    merchant TEXT    NOT NULL PRIMARY KEY,
    position INTEGER NOT NULL
) STRICT;

-- Which process does a job that one is enough for, and until when.
CREATE TABLE leases (
    name  TEXT    NOT NULL PRIMARY KEY,
    owner TEXT    NOT NULL,
    until INTEGER NOT NULL
) STRICT;
