"""The binary log as bytes: framing, events, rows. What a replicator receives and what a watchdog reads off its own disk."""
