"""A small SQS of our own for what no emulator does, with its own clock: `clock`, the state in `queue` and `model`, HTTP
in `server`.

It is deterministic: with the same seed, calls and times it gives the same answers. What it does beyond the emulators:
`MessageNotInflight`, old receipt handles in both ways, the 12 hours that one receive may last, a clock that can be
pushed, delivery that strays from a seed. tests/integration/test_sqs_contract.py holds it and the emulators to the
same contract.
"""
