-- Each group of new cards changes its merchants' rows here: with room on the page the table does not grow.
ALTER TABLE event_heads SET (fillfactor = 20);
