-- Run by cardvault_owner after each `cardvault migrate`: what each role may do with the tables that there are.
-- May be run again at any time.
\set ON_ERROR_STOP on
BEGIN;

REVOKE ALL ON ALL TABLES IN SCHEMA public FROM PUBLIC, cardvault, cardvault_auditor;

-- Rows are made and changed; of most tables none is ever removed.
GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO cardvault;
GRANT DELETE ON leases, notices, replicas, kek_canaries TO cardvault;
-- The audit trail only grows.
REVOKE UPDATE ON audit FROM cardvault;
-- Which migrations were made is read, not written.
REVOKE INSERT, UPDATE ON _sqlx_migrations FROM cardvault;

GRANT SELECT ON audit TO cardvault_auditor;

COMMIT;
