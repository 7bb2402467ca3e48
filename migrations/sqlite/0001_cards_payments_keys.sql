-- Ids are TEXT, times are integer milliseconds since 1970 (UTC), ciphertext is BLOB.
CREATE TABLE data_keys (
    id         TEXT    NOT NULL PRIMARY KEY,
    purpose    TEXT    NOT NULL,
    state      TEXT    NOT NULL,
    kek_id     TEXT    NOT NULL,
    wrapped    BLOB,
    created_at INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX data_keys_active ON data_keys (purpose) WHERE state = 'active';

CREATE TABLE cards (
    card_id     TEXT    NOT NULL PRIMARY KEY,
    merchant    TEXT    NOT NULL,
    -- The buyer's id at the merchant; empty is none, so that the unique index sees it.
    buyer       TEXT    NOT NULL,
    -- HMAC of the PAN; NULL once erased.
    fingerprint BLOB,
    brand       TEXT    NOT NULL,
    bin         TEXT    NOT NULL,
    last4       TEXT    NOT NULL,
    pan         BLOB,
    details     BLOB,
    typed_at    INTEGER NOT NULL,
    -- The process that holds a CVV in its memory, until when, and for which payment.
    cvv_holder  TEXT,
    cvv_until   INTEGER,
    cvv_for     TEXT,
    version     INTEGER NOT NULL,
    created_at  INTEGER NOT NULL,
    updated_at  INTEGER NOT NULL,
    erased_at   INTEGER
) STRICT;
CREATE UNIQUE INDEX cards_pan ON cards (merchant, buyer, fingerprint) WHERE fingerprint IS NOT NULL;
CREATE INDEX cards_fingerprint ON cards (merchant, fingerprint) WHERE fingerprint IS NOT NULL;
CREATE INDEX cards_page ON cards (merchant, created_at, card_id);

CREATE TABLE payments (
    account            TEXT    NOT NULL,
    payment_request_id TEXT    NOT NULL,
    merchant           TEXT    NOT NULL,
    client             TEXT    NOT NULL,
    card_id            TEXT,
    status             TEXT    NOT NULL,
    -- HMAC of what the request means, and the key that it was made with.
    meaning            BLOB    NOT NULL,
    meaning_key        TEXT    NOT NULL,
    currency           TEXT    NOT NULL,
    amount             TEXT    NOT NULL,
    payment_id         TEXT,
    result_code        TEXT,
    result_status      TEXT,
    settled_by         TEXT,
    -- Whether the request went out with a CVV or its like, and so can never be built again.
    had_sensitive      INTEGER NOT NULL,
    -- Whether its number was typed for a card that was known; success then brings the typed details to it.
    retyped            INTEGER NOT NULL,
    -- The request as it left, without PAN and CVV, sealed; NULL once the payment is final.
    outgoing           BLOB,
    -- The gateway's newest answer, scrubbed and sealed.
    answer             BLOB,
    attempt            TEXT    NOT NULL,
    sent_at            INTEGER,
    version            INTEGER NOT NULL,
    created_at         INTEGER NOT NULL,
    updated_at         INTEGER NOT NULL,
    PRIMARY KEY (account, payment_request_id)
) STRICT;
CREATE INDEX payments_page ON payments (merchant, created_at, payment_request_id);
