"""Commands over the collection of recordings: enqueue."""
