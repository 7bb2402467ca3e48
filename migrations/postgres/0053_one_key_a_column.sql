-- A fingerprint column of the cards is one key's, from its announcement to its destruction. Where this fails, two
-- rotations at once have given a column two keys: docs/keys.md, "Rotate once a year", says what to do.
CREATE UNIQUE INDEX data_keys_slot ON data_keys (slot) WHERE purpose = 'fingerprint' AND state <> 'destroyed';
