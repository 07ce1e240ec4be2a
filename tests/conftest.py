"""What every test needs: a place for compiled ops, one thread a process, no network; real text."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"  # text and vocabularies, where a machine has them

os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(REPOSITORY / ".torch_extensions"))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
if shutil.which("c++") and " " not in str(REPOSITORY):  # torch would cut its name there
    os.environ.setdefault("CXX", str(REPOSITORY / "tests/c++"))
settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")


@pytest.fixture
def gpt2_cache() -> Path:
    """A folder with the files of GPT-2's tokenizer."""
    from gpt2_ds.data.format.gpt2_ranks import FILES, cached_name

    folders = [SHARED / "tiktoken_cache"]
    if named := os.environ.get("TIKTOKEN_CACHE_DIR"):
        folders.insert(0, Path(named))
    for folder in folders:
        if all((folder / cached_name(address)).is_file() for address in FILES):
            return folder
    pytest.skip("GPT-2's vocabulary is not here: set TIKTOKEN_CACHE_DIR to a folder that has it")


@pytest.fixture
def tinyshakespeare() -> Path:
    """The text of nanoGPT's shakespeare_char."""
    path = Path(os.environ.get("TINYSHAKESPEARE", SHARED / "corpus" / "tinyshakespeare.txt"))
    if not path.is_file():
        pytest.skip("tinyshakespeare is not here: set TINYSHAKESPEARE to the file")
    return path


@pytest.fixture
def async_io() -> None:
    """DeepSpeed's op for files on an NVMe disk; built here, in minutes, where that is possible."""
    from torch.utils.cpp_extension import _get_build_directory

    from gpt2_ds.parallel.compiled_ops import can_build

    if (Path(_get_build_directory("async_io", verbose=False)) / "async_io.so").exists():
        return
    if not (can_build() and Path("/usr/include/libaio.h").is_file()):
        pytest.skip("DeepSpeed's op async_io needs a C++ compiler, ninja and libaio-dev")
    build = "from deepspeed.ops.op_builder import AsyncIOBuilder as B; B().load()"
    environment = os.environ | {"DS_ACCELERATOR": "cpu"}
    subprocess.run([sys.executable, "-c", build], check=True, env=environment)


_HOSTS = ("test_two_hosts", "test_slurm")  # network namespaces, daemons


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Under `-n`: files side by side, the long ones first; those that make hosts in turn."""
    if not config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return
    groups = {
        item.path: "hosts" if item.path.name.startswith(_HOSTS) else str(item.path)
        for item in items
    }
    minutes: Counter[str] = Counter()
    for item in items:
        item.add_marker(pytest.mark.xdist_group(groups[item.path]))
        if mark := item.get_closest_marker("heavy"):
            minutes[groups[item.path]] += mark.kwargs.get("minutes", 0.25)
    items.sort(key=lambda item: -minutes[groups[item.path]])
