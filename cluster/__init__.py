"""What every part of oscar-ha shares: words, settings, positions, records, coordination, the database dialect."""
