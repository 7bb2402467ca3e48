-- Run once by the superuser: psql -X -f roles.sql. Then give each role its password, which \password sends as
-- a SCRAM verifier, so that it stands in no log:  \password cardvault_owner  \password cardvault  …
\set ON_ERROR_STOP on

-- Changes the schema: `cardvault migrate`, and grants.sql after it. Nothing that runs all day.
CREATE ROLE cardvault_owner LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;
-- The server and the `keys` commands: rows, no schema.
CREATE ROLE cardvault LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;
-- Reads the audit trail.
CREATE ROLE cardvault_auditor LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;

CREATE DATABASE cardvault OWNER cardvault_owner TEMPLATE template0 ENCODING 'UTF8';
REVOKE ALL ON DATABASE cardvault FROM PUBLIC;
GRANT CONNECT ON DATABASE cardvault TO cardvault, cardvault_auditor;

-- Stronger than the server's files and command line: nothing that is bound, and no row, comes into a log.
ALTER DATABASE cardvault SET log_statement = 'none';
ALTER DATABASE cardvault SET log_duration = off;
ALTER DATABASE cardvault SET log_min_duration_statement = -1;
ALTER DATABASE cardvault SET log_min_duration_sample = -1;
ALTER DATABASE cardvault SET log_transaction_sample_rate = 0;
ALTER DATABASE cardvault SET log_parameter_max_length = 0;
ALTER DATABASE cardvault SET log_parameter_max_length_on_error = 0;
ALTER DATABASE cardvault SET log_error_verbosity = terse;
ALTER DATABASE cardvault SET synchronous_commit = on;

\connect cardvault
ALTER SCHEMA public OWNER TO cardvault_owner;
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO cardvault, cardvault_auditor;
