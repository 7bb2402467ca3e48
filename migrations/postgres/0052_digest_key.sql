-- By which request-MAC key a kept notification is known again: while there is one, its key is needed.
ALTER TABLE notices ADD COLUMN digest_key TEXT;
UPDATE notices SET digest_key = (
    SELECT id FROM data_keys WHERE purpose = 'request_mac' AND created_at <= notices.received_at
    ORDER BY created_at DESC LIMIT 1);
