"""The nano base's own tokenizer: byte-level BPE over a pre-split that keeps words whole wherever they stand.

A word is the same token in a header, a prompt and a formula (no token carries a leading space), and digits stand alone, so that
copying a name or an address is copying tokens. Any text round-trips.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from frontier_tune.sdk.grammar import CALL, END, TOOL, USER

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD = "<|pad|>"
SPECIAL = (PAD, END, USER, CALL, TOOL)
# dates and decimal tails may merge, since no one copies them; a function's name keeps its opening bracket; runs of letters;
# single digits; the bracket that opens an own-row reference
_PIECES = r"[0-9]{4}-[0-9]{2}-[0-9]{2}|\.[0-9]{2,}|[A-Za-z]+\(|[A-Za-z]+|[0-9]|\[@|\n| |[^A-Za-z0-9\s]"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of ``vocab_size`` tokens, special tokens and the 256 bytes included."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[USER, CALL, TOOL],
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def encode_dialogue(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[list[int], list[int]]:
    """Token ids of a compact dialogue and a mask that is 1 on what an assistant says (the end marker included)."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    call, end = tokenizer.convert_tokens_to_ids([CALL, END])
    mask, speaking = [], False
    for token in ids:
        mask.append(int(speaking))
        if token == call:
            speaking = True
        elif token == end:
            speaking = False
    return ids, mask


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    tokenizer.save_pretrained(directory)
