-- What happens to a payment after it was asked for: captures, refunds, a cancel, and looks at the gateway.
ALTER TABLE payments ADD COLUMN manual_capture INTEGER NOT NULL DEFAULT 0;
-- The buyer's id at the merchant, whose card the gateway may tell.
ALTER TABLE payments ADD COLUMN buyer TEXT;
-- Whether Antom's card token is kept when the gateway tells it.
ALTER TABLE payments ADD COLUMN wants_token INTEGER NOT NULL DEFAULT 0;
-- The card that the gateway holds for it: what it told under its token.
ALTER TABLE payments ADD COLUMN token_card_id TEXT;
-- The caller's `paymentExpiryTime`.
ALTER TABLE payments ADD COLUMN expires_at INTEGER;
-- Sums in the smallest unit. What is reserved is given back only by a verified failure.
ALTER TABLE payments ADD COLUMN capture_reserved INTEGER NOT NULL DEFAULT 0;
ALTER TABLE payments ADD COLUMN captured INTEGER NOT NULL DEFAULT 0;
ALTER TABLE payments ADD COLUMN refund_reserved INTEGER NOT NULL DEFAULT 0;
-- Captures and refunds without a final outcome, and all there are.
ALTER TABLE payments ADD COLUMN open_operations INTEGER NOT NULL DEFAULT 0;
ALTER TABLE payments ADD COLUMN operation_count INTEGER NOT NULL DEFAULT 0;
-- `OPEN`: a cancel was or may have been sent; `REFUSED`: the gateway refused it; `DONE`.
ALTER TABLE payments ADD COLUMN cancel_state TEXT;
-- `caller` or `vault`.
ALTER TABLE payments ADD COLUMN cancel_by TEXT;
ALTER TABLE payments ADD COLUMN cancel_at INTEGER;
ALTER TABLE payments ADD COLUMN cancel_code TEXT;
-- Until when the authorisation can be captured, and whether its review allows it.
ALTER TABLE payments ADD COLUMN auth_expires_at INTEGER;
ALTER TABLE payments ADD COLUMN auth_review TEXT;
-- When the gateway is asked again; NULL where nothing is to be learned. How often it was asked in vain,
-- and which process does it now.
ALTER TABLE payments ADD COLUMN next_look INTEGER;
ALTER TABLE payments ADD COLUMN looks INTEGER NOT NULL DEFAULT 0;
ALTER TABLE payments ADD COLUMN lease_owner TEXT;
ALTER TABLE payments ADD COLUMN lease_until INTEGER;
CREATE INDEX payments_due ON payments (next_look) WHERE next_look IS NOT NULL;
CREATE INDEX payments_gateway_id ON payments (account, payment_id) WHERE payment_id IS NOT NULL;
-- Payments that were on their way when this was added are asked after at once.
UPDATE payments SET next_look = updated_at WHERE status IN ('UNKNOWN', 'PROCESSING');

CREATE TABLE operations (
    account            TEXT    NOT NULL,
    -- `capture` or `refund`.
    kind               TEXT    NOT NULL,
    request_id         TEXT    NOT NULL,
    merchant           TEXT    NOT NULL,
    -- Who asked; NULL where it was done elsewhere and only learned of.
    client             TEXT,
    payment_request_id TEXT    NOT NULL,
    status             TEXT    NOT NULL,
    -- HMAC of what the request means, and its key; NULL where it was not asked for here.
    meaning            BLOB,
    meaning_key        TEXT,
    currency           TEXT    NOT NULL,
    amount             INTEGER NOT NULL,
    -- Antom's captureId or refundId.
    gateway_id         TEXT,
    result_code        TEXT,
    result_status      TEXT,
    settled_by         TEXT,
    -- The request as it leaves, sealed; NULL once the operation is final.
    outgoing           BLOB,
    -- The gateway's newest answer, scrubbed and sealed.
    answer             BLOB,
    sent_at            INTEGER,
    next_look          INTEGER,
    looks              INTEGER NOT NULL DEFAULT 0,
    lease_owner        TEXT,
    lease_until        INTEGER,
    version            INTEGER NOT NULL,
    created_at         INTEGER NOT NULL,
    updated_at         INTEGER NOT NULL,
    PRIMARY KEY (account, kind, request_id)
) STRICT;
CREATE INDEX operations_payment ON operations (account, payment_request_id, created_at);
CREATE INDEX operations_due ON operations (next_look) WHERE next_look IS NOT NULL;

-- Notifications that changed nothing here: of payments that are not known, and of kinds that are told on or
-- only kept. Each is kept once; `digest` is keyed.
CREATE TABLE notices (
    account            TEXT    NOT NULL,
    digest             TEXT    NOT NULL,
    kind               TEXT    NOT NULL,
    -- `nobody` where the payment is not known.
    merchant           TEXT    NOT NULL,
    payment_request_id TEXT,
    -- Scrubbed and sealed.
    body               BLOB    NOT NULL,
    received_at        INTEGER NOT NULL,
    PRIMARY KEY (account, digest)
) STRICT;
CREATE INDEX notices_age ON notices (received_at);
