"""`python -m stt_async` is `stt-async`."""

from stt_async.cli import main

if __name__ == "__main__":
    main()
