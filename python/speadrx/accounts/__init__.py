"""What became of every heap: what was placed, rejected, present and missing, by source."""
