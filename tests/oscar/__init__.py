"""Tests with the real OSCAR schema. It lies beside the project, never in it; where it is absent they are skipped."""
