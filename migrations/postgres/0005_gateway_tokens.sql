-- Cards that only Antom holds: its token, sealed, and the keyed digest by which it is found again.
ALTER TABLE cards ADD COLUMN source TEXT NOT NULL DEFAULT 'PAN';
ALTER TABLE cards ADD COLUMN token BYTEA;
ALTER TABLE cards ADD COLUMN token_digest BYTEA;
-- The request-MAC key of that digest.
ALTER TABLE cards ADD COLUMN token_digest_key TEXT;
-- The month of which its expiry was told of, `YYYY-MM`.
ALTER TABLE cards ADD COLUMN expiry_told TEXT;
CREATE UNIQUE INDEX cards_token ON cards (merchant, buyer, token_digest) WHERE token_digest IS NOT NULL;
CREATE INDEX agreements_end ON agreements (expires_at) WHERE state <> 'ENDED' AND expires_at IS NOT NULL;
