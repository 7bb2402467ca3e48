-- Events are numbered where they are written from here on; those that wait for it are numbered now.
INSERT INTO event_heads (merchant, position)
SELECT DISTINCT merchant, 0 FROM events WHERE position IS NULL
ON CONFLICT (merchant) DO NOTHING;

UPDATE events SET position = numbered.position FROM (
    SELECT waiting.event_id, event_heads.position
        + ROW_NUMBER() OVER (PARTITION BY waiting.merchant ORDER BY waiting.created_at, waiting.event_id) AS position
    FROM events AS waiting JOIN event_heads ON event_heads.merchant = waiting.merchant
    WHERE waiting.position IS NULL) AS numbered
WHERE events.event_id = numbered.event_id;

UPDATE event_heads SET position = MAX(position, (
    SELECT COALESCE(MAX(events.position), 0) FROM events
    WHERE events.merchant = event_heads.merchant AND events.position IS NOT NULL));
