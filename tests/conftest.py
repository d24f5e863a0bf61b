"""What all tests share: eight CPU devices, a compilation cache, array types checked, our own warnings as errors.

JAX_PLATFORMS=cuda (or tpu) in the environment runs the tests there.
"""

import gc
import importlib
import math
import os
import sys
import time
from pathlib import Path

STARTED = time.monotonic()
ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # runs without installation, and with plain `pytest`

# In the environment, so that subprocesses of tests have them too.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of PyTorch, whose threads in two workers wait for one another, busily
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
# The tests spend their time on compiling, which takes a quarter as long without optimisation and XLA:CPU's fusion
# emitters. The golden numbers (fixture `optimized`) and `make demo` run optimised programs.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ["XLA_FLAGS"] = f"--xla_cpu_use_fusion_emitters=false {os.environ.get('XLA_FLAGS', '')}"
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")

import jax  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

# A pytest plug-in may have imported JAX before the environment was set.
jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])
jax.config.update("jax_num_cpu_devices", int(os.environ["JAX_NUM_CPU_DEVICES"]))
jax.config.update("jax_disable_most_optimizations", os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1")
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update(
    "jax_persistent_cache_min_compile_time_secs", float(os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"])
)
jax.config.update(
    "jax_persistent_cache_min_entry_size_bytes", int(os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"])
)

# Shapes and dtypes in signatures are checked at every call (at tracing, under jit). Before any of these is imported.
CHECKED = [
    f"tood_jax.{name}" for name in ("geometry", "assigners", "losses", "postprocess", "models", "ops", "criterion")
]
install_import_hook(CHECKED, "beartype.beartype")

# The same examples every time; HYPOTHESIS_PROFILE=explore draws new ones.
settings.register_profile("repeat", deadline=None, max_examples=40, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=200)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeat"))


@pytest.fixture(scope="module")
def optimized():
    """Compile as users do, but for XLA:CPU's fusion emitters, which a program asks for with AS_USERS."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def hub_server(tmp_path_factory):
    """A local Hugging Face Hub; huggingface_hub reads these variables once, when it is imported."""
    from tests.hub_server import HubServer

    server = HubServer()
    home = str(tmp_path_factory.mktemp("hub"))
    variables = {"HF_ENDPOINT": server.url, "HF_HOME": home, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        patch.delenv("HF_TOKEN", raising=False)
        assert server.url == importlib.import_module("huggingface_hub.constants").ENDPOINT
        yield server
    server.stop()


@pytest.fixture
def hub(hub_server, tmp_path, monkeypatch):
    """The local Hub without the requests of other tests, and an empty cache of web downloads."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    hub_server.requests.clear()
    hub_server.faults.clear()
    return hub_server


@pytest.fixture
def hub_token(monkeypatch):
    """A login of the local Hub."""
    from tests.hub_server import TOKEN

    monkeypatch.setenv("HF_TOKEN", TOKEN)


def pytest_addoption(parser: pytest.Parser) -> None:
    late = "skip and list the tests that would begin later than this"
    parser.addoption("--minutes", type=float, default=math.inf, help=late)
    first = "begin with the test file of this number, modulo their number, so that in each run others are late"
    parser.addoption("--first-file", type=int, default=0, help=first)


LONGEST = (
    "test_many_processes",
    "test_long_runs",
    "test_elastic",
    "test_goldens",
    "test_golden_rivals",
    "test_resume",
    "test_convert",
    "test_programs",
    "test_sharding",
    "test_collapse",
    "test_train_step",
    "test_compile_for",
    "test_load",
    "test_rivals",
    "test_deform_conv",
    "test_level_maps",
    "test_untrusted_checkpoints",
    "test_against_goldens",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The files of the longest checks first, so that at the end no process waits for one of them; or --first-file."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
    if first := config.getoption("--first-file"):
        files = list(dict.fromkeys(item.path for item in items))
        place = {file: (number - first) % len(files) for number, file in enumerate(files)}
        items.sort(key=lambda item: place[item.path])


def pytest_collection_finish() -> None:
    """Collect garbage less often, and not among the imported modules: tracing makes millions of objects."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if time.monotonic() - STARTED > 60 * item.config.getoption("--minutes"):
        pytest.skip("not run: out of time (--minutes)")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", r"error:::tood_jax(\.|$)")
