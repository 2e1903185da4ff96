"""What has to hold before a run joins a Ray cluster: its token, a head that answers, a workspace that can be sent."""

from __future__ import annotations

import hashlib
import os
import socket
import zipfile
from pathlib import Path

import pytest

from frontier_tune.contracts import BadInput
from frontier_tune.orchestration import cluster, joined


@pytest.mark.parametrize(
    ("own", "environment", "words"),
    [
        (True, {}, "joined with its token alone"),
        (False, {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "t"}, "RAY_AUTH_MODE must be token"),
        (False, {"RAY_AUTH_TOKEN_PATH": "nowhere"}, "no token is there"),
        (False, {"RAY_AUTH_TOKEN": "t"}, None),
        (False, {"RAY_AUTH_TOKEN_PATH": "token"}, None),
    ],
)
def test_a_cluster_s_token_is_asked_for_and_never_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: bool, environment: dict[str, str], words: str | None
) -> None:
    (tmp_path / "token").write_text("secret\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cluster, "OWN_TOKEN", own)
    for key in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(key, raising=False)
    for key, value in ({"RAY_AUTH_MODE": "token"} | environment).items():
        monkeypatch.setenv(key, value)
    if words is None:
        joined.require_token()
    else:
        with pytest.raises(BadInput, match=words):
            joined.require_token()


def test_a_head_that_does_not_answer_is_bad_input() -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        address = f"127.0.0.1:{s.getsockname()[1]}"
        joined.require_head(address)
    with pytest.raises(BadInput, match=f"no Ray head answers at {address}"):
        joined.require_head(address)
    absent = joined._absent(address)
    assert [absent() is None for _ in range(joined._GONE)] == [True] * (joined._GONE - 1) + [False]


def test_a_workspace_has_one_package_whatever_its_files_dates_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "workspace"
    for name in (
        "envs/close/__init__.py",
        "recipes/close.yaml",
        "runs/old/engine.log",
        ".git/HEAD",
        "envs/__pycache__/x.pyc",
        ".env",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    packages = []
    for n in range(2):
        (tmp_path / str(n)).mkdir()
        packages.append(joined.pack(root, tmp_path / str(n)))
        os.utime(root / "recipes" / "close.yaml", (n, n))
    with zipfile.ZipFile(packages[0]) as z:
        assert z.namelist() == ["envs/close/__init__.py", "recipes/close.yaml"]
        assert z.read("recipes/close.yaml") == b"recipes/close.yaml"
    same = {hashlib.sha256(p.read_bytes()).hexdigest() for p in packages}
    assert len(same) == 1
    (root / "recipes" / "close.yaml").write_text("another")
    assert hashlib.sha256(joined.pack(root, tmp_path / "0").read_bytes()).hexdigest() not in same
    monkeypatch.setattr(joined, "LARGEST", 10)
    with pytest.raises(BadInput, match="largest files: envs/close/__init__.py"):
        joined.pack(root, tmp_path / "0")
