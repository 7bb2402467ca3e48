-- Payments without a final status, which the metrics count.
CREATE INDEX payments_open ON payments (status, created_at) WHERE status IN ('UNKNOWN', 'PROCESSING');
