-- The audit trail (PCI DSS 10.2). Rows form chains: each row's MAC covers the one before it. A chain belongs
-- to one process, from its start to its end; a process has several, so that its transactions need not wait
-- for one another.
CREATE TABLE audit (
    chain      TEXT    NOT NULL,
    seq        INTEGER NOT NULL,
    at         INTEGER NOT NULL,
    -- Who: a client of the configuration, a command's user, the gateway, or the vault itself.
    actor      TEXT    NOT NULL,
    merchant   TEXT,
    action     TEXT    NOT NULL,
    object     TEXT,
    outcome    TEXT    NOT NULL,
    -- Why, for a refusal; what exactly, for others.
    detail     TEXT,
    -- Where it came from: address and certificate, host and process.
    origin     TEXT,
    request_id TEXT,
    key_id     TEXT    NOT NULL,
    mac        BLOB    NOT NULL,
    PRIMARY KEY (chain, seq)
) STRICT;
CREATE INDEX audit_time ON audit (at);
