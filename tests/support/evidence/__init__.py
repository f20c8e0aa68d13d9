"""What tests check afterwards: recorded calls, deliveries, invariants, outputs and leftovers."""
