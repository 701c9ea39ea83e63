"""What the tests of a running service get from their caller, tests/clients.rs."""

import os

import pytest


@pytest.fixture(scope="session")
def url():
    return os.environ["CLIENTS_URL"]


@pytest.fixture(scope="session")
def pid():
    """The process that serves."""
    return int(os.environ["CLIENTS_PID"])


@pytest.fixture(scope="session")
def slow():
    """Whether minutes may pass."""
    return os.environ.get("CLIENTS_SLOW") == "1"
