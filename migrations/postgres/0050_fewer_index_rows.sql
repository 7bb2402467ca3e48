-- A card's past is its declines, however many payments it has.
CREATE INDEX payments_declined ON payments (merchant, card_id, created_at) WHERE decline IS NOT NULL;

-- One index finds a number of a merchant's with and without a buyer.
DROP INDEX cards_pan;
DROP INDEX cards_pan_b;
DROP INDEX cards_fingerprint;
DROP INDEX cards_fingerprint_b;
CREATE UNIQUE INDEX cards_pan ON cards (fingerprint, buyer, merchant) WHERE fingerprint IS NOT NULL;
CREATE UNIQUE INDEX cards_pan_b ON cards (fingerprint_b, buyer, merchant) WHERE fingerprint_b IS NOT NULL;
