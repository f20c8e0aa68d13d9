"""Hypothesis without deadlines, as machines differ, and an environment without settings."""

import os

import hypothesis
import pytest

hypothesis.settings.register_profile("unit", deadline=None, max_examples=60)
hypothesis.settings.load_profile("unit")


@pytest.fixture
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without STT_* and AWS_* variables, restored after the test."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for name in list(os.environ):
        if name.startswith(("STT_", "AWS_")):
            del os.environ[name]
    return monkeypatch
