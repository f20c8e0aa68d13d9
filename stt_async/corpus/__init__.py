"""What operators do with recordings and results."""
