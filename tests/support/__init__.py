"""What tests lean on: services on loopback, worker processes, recordings, waiting, and a look at what is left."""
