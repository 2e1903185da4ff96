"""Finding a base: what is refused, and what the message says."""

from __future__ import annotations

from pathlib import Path

import pytest

from frontier_tune.bases import load
from frontier_tune.contracts import BadInput


def test_a_missing_directory_is_named() -> None:
    with pytest.raises(BadInput, match=r"\./nowhere.*no such directory"):
        load("./nowhere")


def test_a_directory_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no config.json"):
        load(str(tmp_path))


def test_pickled_weights_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_moe"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(BadInput, match="pytorch_model.bin.*safetensors"):
        load(str(tmp_path))


def test_a_broken_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BadInput, match="not JSON"):
        load(str(tmp_path))
