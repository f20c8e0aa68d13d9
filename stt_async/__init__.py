"""Splits large speech collections into training segments."""

__version__ = "0.1.0"
