"""Write the corpus: token ids and labels of every dialogue, its hash, and counts that its data sheets state."""

from __future__ import annotations

import hashlib
import multiprocessing
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from frontier_tune.bases.corpus.dialogues import make_dialogue
from frontier_tune.sdk.grammar import compact_dialogue

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CHUNK = 250


@dataclass
class Corpus:
    """``texts`` in order of index, ``origins`` the program that wrote each. ``sha256`` is over all of them, so that two builds of one seed can be compared."""

    seed: int
    texts: list[str] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)
    sources: Counter[str] = field(default_factory=Counter)
    questions: Counter[str] = field(default_factory=Counter)
    choices: Counter[str] = field(default_factory=Counter)

    @property
    def sha256(self) -> str:
        digest = hashlib.sha256()
        for text in self.texts:
            digest.update(text.encode() + b"\0")
        return digest.hexdigest()


def _chunk(start: int, seed: int, stop: int) -> list[tuple[str, str, tuple[str, ...], tuple[str, ...]]]:
    rows = []
    for index in range(start, min(start + CHUNK, stop)):
        d = make_dialogue(seed, index)
        rows.append((compact_dialogue(d.messages), d.source, d.questions, d.choices))
    return rows


def write_corpus(seed: int, dialogues: int, workers: int = 2) -> Corpus:
    """The corpus of ``seed`` with so many dialogues; a pure function of both, whatever ``workers`` is."""
    corpus = Corpus(seed)
    starts = range(0, dialogues, CHUNK)
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers) as pool:
        for rows in pool.imap(partial(_chunk, seed=seed, stop=dialogues), starts):
            for text, source, questions, choices in rows:
                corpus.texts.append(text)
                corpus.origins.append(source)
                corpus.sources[source] += 1
                corpus.questions.update(questions)
                corpus.choices.update(choices)
    return corpus


def tokenized(corpus: Corpus, tokenizer: PreTrainedTokenizerFast, max_length: int) -> list[dict[str, list[int]]]:
    """Rows for SFTTrainer: ``input_ids`` and ``labels`` (-100 but on what the assistant says). Longer dialogues are left out."""
    from frontier_tune.bases.tokenizer import encode_dialogue

    rows = []
    for text in corpus.texts:
        ids, mask = encode_dialogue(tokenizer, text)
        if len(ids) <= max_length:
            rows.append({"input_ids": ids, "labels": [t if m else -100 for t, m in zip(ids, mask, strict=True)]})
    return rows
