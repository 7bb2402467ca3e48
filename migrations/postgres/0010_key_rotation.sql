-- The life of data keys. `expires_at` is NULL for keys made before this: their time counts from created_at.
ALTER TABLE data_keys ADD COLUMN expires_at BIGINT;
-- Records sealed and digests made, as far as processes have reported them.
ALTER TABLE data_keys ADD COLUMN uses BIGINT NOT NULL DEFAULT 0;
ALTER TABLE data_keys ADD COLUMN retired_at BIGINT;
ALTER TABLE data_keys ADD COLUMN destroyed_at BIGINT;
-- Which of the two fingerprint columns of a card a fingerprint key fills: 0 is fingerprint, 1 is fingerprint_b.
ALTER TABLE data_keys ADD COLUMN slot BIGINT NOT NULL DEFAULT 0;
CREATE UNIQUE INDEX data_keys_next ON data_keys (purpose) WHERE state = 'next';

-- One row. It rises with every change of the keys; a statement that stores a card names the epoch whose keys
-- it was sealed with, and stores nothing where that is over. So no process, however long it slept, stores
-- a card under keys that the others have left.
CREATE TABLE key_epoch (
    one   BIGINT NOT NULL PRIMARY KEY,
    epoch BIGINT NOT NULL
);
INSERT INTO key_epoch (one, epoch) VALUES (1, 1);

-- A second fingerprint of each card, while the fingerprint key rotates and for as long as its predecessor
-- is kept. Both are unique.
ALTER TABLE cards ADD COLUMN fingerprint_b BYTEA;
CREATE UNIQUE INDEX cards_pan_b ON cards (merchant, buyer, fingerprint_b) WHERE fingerprint_b IS NOT NULL;
CREATE INDEX cards_fingerprint_b ON cards (merchant, fingerprint_b) WHERE fingerprint_b IS NOT NULL;

-- A key that does nothing, wrapped under a KEK that shall come into use.
CREATE TABLE kek_canaries (
    kek_id  TEXT   NOT NULL PRIMARY KEY,
    dek_id  TEXT   NOT NULL,
    wrapped BYTEA  NOT NULL,
    made_at BIGINT NOT NULL
);

-- Processes that serve, when each was last alive, and how far it follows the keys.
CREATE TABLE replicas (
    instance   TEXT   NOT NULL PRIMARY KEY,
    host       TEXT   NOT NULL,
    started_at BIGINT NOT NULL,
    seen_at    BIGINT NOT NULL,
    epoch      BIGINT NOT NULL,
    -- The newest canary's KEK that it has opened.
    opened_kek TEXT
);
