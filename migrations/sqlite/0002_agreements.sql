CREATE TABLE agreements (
    agreement_id TEXT    NOT NULL PRIMARY KEY,
    merchant     TEXT    NOT NULL,
    card_id      TEXT,
    type         TEXT    NOT NULL,
    state        TEXT    NOT NULL,
    ended_reason TEXT,
    -- The payment that opened it.
    account            TEXT NOT NULL,
    payment_request_id TEXT NOT NULL,
    -- The buyer's consent as the merchant recorded it, JSON.
    consent      TEXT    NOT NULL,
    max_currency TEXT,
    max_amount   INTEGER,
    interval     TEXT,
    expires_at   INTEGER,
    -- The scheme's id of the payment that began the chain: sent for ever. Later ones are kept beside it.
    nti          TEXT,
    nti_source   TEXT,
    nti_at       INTEGER,
    latest_nti        TEXT,
    latest_nti_source TEXT,
    latest_nti_at     INTEGER,
    -- Mastercard's Transaction Link ID.
    tlid         TEXT,
    tlid_source  TEXT,
    tlid_at      INTEGER,
    version      INTEGER NOT NULL,
    created_at   INTEGER NOT NULL,
    updated_at   INTEGER NOT NULL,
    activated_at INTEGER,
    ended_at     INTEGER
) STRICT;
CREATE INDEX agreements_card ON agreements (merchant, card_id, created_at);
CREATE INDEX agreements_opener ON agreements (account, payment_request_id);

ALTER TABLE payments ADD COLUMN agreement_id TEXT;
ALTER TABLE payments ADD COLUMN initiator TEXT NOT NULL DEFAULT 'CUSTOMER';
-- How the issuer declined: `never` (do not try again), `revoked` (the buyer stopped it), `soft`.
ALTER TABLE payments ADD COLUMN decline TEXT;
CREATE INDEX payments_card ON payments (merchant, card_id, created_at) WHERE card_id IS NOT NULL;
