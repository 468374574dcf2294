"""Tests of `chaos/attack`."""
