"""The expert layer reads and writes nothing beside its tensors: each ends, or begins, where the next page may not be touched.

Sanitizers don't see what AMX's tile instructions load; the processor does.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

GUARDED = """
import ctypes, mmap, random, sys
import torch
from frontier_tune.experts import native_experts

PAGE, kept = mmap.PAGESIZE, []
protect = ctypes.CDLL(None, use_errno=True).mprotect

def guarded(t, at_end):
    size = t.numel() * t.element_size()
    pages = -(-size // PAGE)
    memory = mmap.mmap(-1, (pages + 2) * PAGE)
    kept.append(memory)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    offset = PAGE + (pages * PAGE - size if at_end else 0)
    out = torch.frombuffer(memory, dtype=t.dtype, count=t.numel(), offset=offset).view(t.shape)
    out.copy_(t)
    for page in (0, pages + 1):
        assert protect(ctypes.c_void_p(start + page * PAGE), PAGE, 0) == 0
    return out

if sys.argv[1:] == ["trespass"]:
    t = guarded(torch.ones(PAGE // 4), True)
    print(ctypes.string_at(t.data_ptr() + PAGE, 1))
random.seed(0)
for case in range(60):
    torch.manual_seed(case)
    dtype = random.choice(native_experts.DTYPES)
    rank, tokens = random.choice([1, 2, 7, 8, 9, 16, 17, 33, 40]), random.choice([1, 2, 15, 16, 17, 31, 40, 90])
    experts, hidden, width = random.randint(1, 4), random.choice([32, 64, 96]), random.choice([32, 64])
    adapters = native_experts.Adapters.empty(2, experts, hidden, width, rank, dtype)
    for slot in range(2):
        sizes = ((hidden, width), (hidden, width), (width, hidden))
        adapters.set(slot, *((torch.randn(experts, rank, i), torch.randn(experts, o, rank)) for i, o in sizes))
    weights = [native_experts.pack(torch.randn(experts, *s).to(dtype)) for s in ((2 * width, hidden), (hidden, width))]
    ids = torch.randint(0, experts, (tokens, random.randint(1, 3)), dtype=torch.int32)
    slots = [torch.randint(-1, 2, (tokens,)), torch.ones(tokens, dtype=torch.long)][case % 2]
    given = [torch.randn(tokens, hidden).to(dtype), ids, torch.rand(ids.shape), *weights]
    expected = native_experts.forward(*given, slots, adapters)
    for at_end in (True, False):
        walled = native_experts.Adapters(rank, guarded(adapters.tensor, at_end))
        out = guarded(torch.zeros(tokens, hidden, dtype=dtype), at_end)
        native_experts.forward(*(guarded(t, at_end) for t in given), guarded(slots, at_end), walled, out=out)
        assert torch.equal(out, expected), case
print("inside")
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", GUARDED, *arguments], capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="protects pages by mprotect")
def test_nothing_is_read_or_written_beside_the_tensors() -> None:
    trespassed = run("trespass")
    assert trespassed.returncode < 0, "the wall of this test has a hole"
    inside = run()
    assert inside.returncode == 0 and inside.stdout.strip() == "inside", inside.stderr[-2000:]
