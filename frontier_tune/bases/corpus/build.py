"""Write the corpus: token ids and labels of every dialogue, its hash, and counts that its data sheets state."""

from __future__ import annotations

import hashlib
import multiprocessing
import random
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from frontier_tune.bases.corpus.dialogues import drill, make_dialogue
from frontier_tune.sdk.grammar import compact_dialogue

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CHUNK = 250


@dataclass
class Corpus:
    """``texts`` in order of index, ``origins`` the program that wrote each.

    ``sha256`` is over all of them, so that two builds of one seed can be compared.
    """

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


def _chunk(start: int, seed: int, drills: int, stop: int) -> list[tuple[str, str, tuple[str, ...], tuple[str, ...]]]:
    rows = []
    for index in range(start, min(start + CHUNK, stop)):
        d = drill(seed, index) if index < drills else make_dialogue(seed, index - drills)
        rows.append((compact_dialogue(d.messages), d.source, d.questions, d.choices))
    return rows


def write_corpus(seed: int, dialogues: int, drills: int = 0, workers: int = 2) -> Corpus:
    """The corpus of ``seed``: so many drills, then so many dialogues. A pure function of these, whatever ``workers`` is."""
    corpus = Corpus(seed)
    stop = drills + dialogues
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers) as pool:
        for rows in pool.imap(partial(_chunk, seed=seed, drills=drills, stop=stop), range(0, stop, CHUNK)):
            for text, source, questions, choices in rows:
                corpus.texts.append(text)
                corpus.origins.append(source)
                corpus.sources[source] += 1
                corpus.questions.update(questions)
                corpus.choices.update(choices)
    return corpus


Row = dict[str, list[int]]


def tokenized(corpus: Corpus, tokenizer: PreTrainedTokenizerFast, max_length: int) -> tuple[list[Row], list[Row]]:
    """Drills and dialogues as rows for SFTTrainer: ``input_ids`` and ``labels`` (-100 but on what the assistant says).

    Dialogues longer than ``max_length`` are left out.
    """
    from frontier_tune.bases.tokenizer import encode_dialogue

    drills: list[Row] = []
    dialogues: list[Row] = []
    for text, origin in zip(corpus.texts, corpus.origins, strict=True):
        ids, mask = encode_dialogue(tokenizer, text)
        if len(ids) <= max_length:
            row = {"input_ids": ids, "labels": [t if m else -100 for t, m in zip(ids, mask, strict=True)]}
            (drills if origin == "drill" else dialogues).append(row)
    return drills, dialogues


def curriculum(drills: list[Row], dialogues: list[Row], batch: int, seed: int, first: float = 0.75) -> list[Row]:
    """One order for all rows: the share ``first`` of the drills, then everything else mixed.

    Rows of a batch are of similar length (sorted within windows of 64 batches), so that little is padded; batches of a
    window come in random order. A short last batch of a stage is filled up from the next.
    """
    rng = random.Random(seed)
    cut = int(first * len(drills))
    mixed = [*drills[cut:], *dialogues]
    rng.shuffle(mixed)
    ordered: list[Row] = []
    for stage in (drills[:cut], mixed):
        for at in range(0, len(stage), 64 * batch):
            window = sorted(stage[at : at + 64 * batch], key=lambda row: len(row["input_ids"]))
            batches = [window[i : i + batch] for i in range(0, len(window), batch)]
            rng.shuffle(batches)
            ordered += [row for b in batches for row in b]
    return ordered
