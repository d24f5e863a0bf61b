"""Most of these tests need PyTorch and are left out without it: `make test-torch` installs it and runs them."""

import importlib.util

if importlib.util.find_spec("torch") is None:
    collect_ignore = ["test_against_goldens.py", "test_comparison.py", "test_torch_reference.py"]
