"""Stand-ins for AWS services that no local server offers."""
