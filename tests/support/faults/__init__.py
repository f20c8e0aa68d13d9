"""What spoils a worker's calls, connections, certificates, names and clock."""
