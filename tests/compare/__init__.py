"""Tests of `oscar-ha verify`."""
