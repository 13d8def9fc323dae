"""What `exex report` makes of a run record: text, a page, tables."""
