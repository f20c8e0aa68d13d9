"""The world outside, one file each."""
