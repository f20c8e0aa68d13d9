"""SQS on loopback, in memory, for the demo and the tests (docs/adr/0018-own-local-sqs.md).

`queue` is one queue, `model` all queues, `operations` the API, `server` HTTP. One event loop runs everything, so each
request completes before the next one starts. tests/integration/test_sqs_contract.py tests this server, moto and
ministack against one contract.
"""
