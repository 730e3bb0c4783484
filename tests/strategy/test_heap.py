"""Memory between small blocks that stay goes back to the system."""

import ctypes
import subprocess
import sys

import pytest

SCATTERED = """
import ctypes, psutil
from strategy.heap import trim_heap
take, give = ctypes.CDLL(None).malloc, ctypes.CDLL(None).free
take.argtypes, take.restype, give.argtypes = [ctypes.c_size_t], ctypes.c_void_p, [ctypes.c_void_p]
blocks = [take(60_000) for _ in range(2000)]
for block in blocks:
    ctypes.memset(block, 1, 60_000)
for block in blocks[:-1]:
    give(block)
rss = psutil.Process().memory_info
before = rss().rss
trim_heap()
print((before - rss().rss) / 2**20)
"""


def test_free_memory_below_a_block_in_use_is_given_back() -> None:
    try:
        ctypes.CDLL(None).malloc_trim  # noqa: B018
    except (OSError, AttributeError):
        pytest.skip("this C library cannot give memory back")
    done = subprocess.run([sys.executable, "-c", SCATTERED], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 50
