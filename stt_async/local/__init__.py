"""Embedded stand-ins on loopback, for a first try and for tests."""
