-- When a payment or an agreement last took the card. It rises with each: what erases a card names the value that
-- it was judged by, so that no card goes under a payment that has just begun.
ALTER TABLE cards ADD COLUMN used_at INTEGER;
-- Cards by age, for the sweep.
CREATE INDEX cards_age ON cards (typed_at, card_id) WHERE erased_at IS NULL;

-- What was erased because its time was over, and why: signed texts, each written in the transaction of its
-- erasures. No card data: reference, brand, last four digits, times.
CREATE TABLE retention_reports (
    report_id TEXT   NOT NULL PRIMARY KEY,
    -- One sweep, or one command.
    run       TEXT   NOT NULL,
    merchant  TEXT   NOT NULL,
    at        INTEGER NOT NULL,
    cards     INTEGER NOT NULL,
    body      TEXT   NOT NULL,
    key_id    TEXT   NOT NULL,
    -- Ed25519, hexadecimal.
    signature TEXT   NOT NULL
) STRICT;
CREATE INDEX retention_reports_time ON retention_reports (at, report_id);
