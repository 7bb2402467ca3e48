-- By which request-MAC key a kept notification is known again: while there is one, its key is needed. Where it is not
-- known, of those from before and of servers that do not know the column yet, it is the newest of its time.
ALTER TABLE notices ADD COLUMN digest_key TEXT;
