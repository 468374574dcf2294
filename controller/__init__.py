"""Observe, decide, execute, record."""
