"""The kernels' library is built once, whole or not at all, and says what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from frontier_tune.contracts import BadInput
from frontier_tune.native import build


def test_the_library_is_there_and_names_its_instruction_set():
    assert build.load() in ("avx512", "avx2", "portable")
    assert build.build() == build.build()


def test_no_compiler_is_said_with_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BadInput, match="no-such-compiler.*apt-get install g"):
        build.build(tmp_path)


def test_a_failing_compiler_leaves_nothing_behind(monkeypatch, tmp_path):
    broken = tmp_path / "cxx"
    broken.write_text("#!/bin/sh\necho 'fatal: no C++20 here' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(BadInput, match="no C\\+\\+20 here"):
        build.build(tmp_path / "cache")
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [".build.lock"]


def test_processes_that_build_at_once_compile_once(monkeypatch, tmp_path):
    """A stand-in compiler that writes its output slowly and counts its calls."""
    calls = tmp_path / "calls"
    fake = tmp_path / "cxx"
    fake.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && {{ echo fake 1; exit; }}\necho x >> {calls}\n'
        'while [ $# -gt 0 ]; do [ "$1" = -o ] && out=$2; shift; done\nsleep 0.05; echo made > "$out"\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda _: build.build(tmp_path / "cache"), range(4)))
    assert len(paths) == 1 and paths.pop().read_text() == "made\n"
    once = len(calls.read_text().splitlines())
    build.build(tmp_path / "cache")
    assert len(calls.read_text().splitlines()) == once


def test_an_unknown_instruction_set_is_refused():
    code = "from frontier_tune.native import build; build.load()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"FRONTIER_TUNE_ISA": "sse9"}, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0 and "known are amx_bf16, avx512_bf16, avx512, avx2, portable" in done.stderr


def test_an_unwritable_cache_is_named(tmp_path):
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(BadInput, match="FRONTIER_TUNE_CACHE"):
        build.build(tmp_path / "file" / "cache")
