"""SQS on loopback, in memory: the queue of the demo and of the tests (docs/adr/0018-own-local-sqs.md).

`queue` is one queue, `model` all of them, `operations` the API, `server` HTTP. One event loop does everything, so each
request is carried out whole before the next one. tests/integration/test_sqs_contract.py holds it, moto and ministack to
one contract. It does more than they do: `MessageNotInflight`, the 12 hours that one receive may last.
"""
