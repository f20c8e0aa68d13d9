"""Shared by the tests: services on loopback, worker processes, recordings, faults, fakes and evidence."""
