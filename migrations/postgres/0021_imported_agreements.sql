-- Agreements that came from another vault: type and network transaction id, so that none comes twice. NULL where
-- it was opened here.
ALTER TABLE agreements ADD COLUMN import_key TEXT;
CREATE UNIQUE INDEX agreements_imported ON agreements (merchant, card_id, import_key) WHERE import_key IS NOT NULL;
