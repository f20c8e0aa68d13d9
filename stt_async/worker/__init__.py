"""The daemon: slots, leases, the process pool, and the way of one job."""
