"""The watchdog beside each database: probe, lease, fence, open."""
