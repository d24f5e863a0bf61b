"""Assigners are tested as users compile them: fused arithmetic may round differently and so decide ties differently."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def optimized_programs(optimized):
    """Compile all programs of these tests with optimisation."""
