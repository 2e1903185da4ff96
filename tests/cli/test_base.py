"""``frontier-tune base``: what it shows, and which base it refuses to probe."""

from __future__ import annotations

import pytest

from frontier_tune.bases import NANO
from frontier_tune.cli.main import main


def test_the_shipped_base_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["base", "show"]) == 0
    assert "qwen3_moe, 1,512,832 parameters" in capsys.readouterr().out


def test_a_base_with_another_grammar_is_not_probed(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    import shutil

    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    other = tmp_path / "other"
    shutil.copytree(NANO, other)
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    ).save_pretrained(other)
    assert main(["base", "probe", str(other)]) == 2
    assert "lacks <|call|>" in capsys.readouterr().err
