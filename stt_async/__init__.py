"""Huge piles of recorded speech into clean training segments."""

__version__ = "0.1.0"
