"""Write the corpus: token ids and labels of every dialogue, its hash, and counts that its data sheets state."""

from __future__ import annotations

import hashlib
import multiprocessing
import random
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from frontier_tune.bases.corpus.dialogues import Dialogue, drill, make_dialogue, record_dialogue, record_drill
from frontier_tune.sdk.grammar import compact_dialogue
from frontier_tune.sdk.practice import dialogues as practice_dialogues

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


@dataclass(frozen=True)
class Sizes:
    """How many dialogues each program writes. ``practice``: environments whose golden programs are shown, of a company drawn for
    each dialogue (``sdk.practice``), ``practised`` dialogues each."""

    drills: int = 0
    dialogues: int = 0
    record_drills: int = 0
    records: int = 0
    practice: tuple[str, ...] = ()
    practised: int = 0


Written = tuple[str, str, tuple[str, ...], tuple[str, ...]]
_PROGRAMS = {"drills": drill, "dialogues": make_dialogue, "record_drills": record_drill, "records": record_dialogue}


def _written(d: Dialogue) -> Written:
    return compact_dialogue(d.messages), d.source, d.questions, d.choices


def _chunk(job: tuple[str, int, int], seed: int) -> list[Written]:
    program, start, stop = job
    return [_written(_PROGRAMS[program](seed, index)) for index in range(start, stop)]


def _practised(path: str, seed: int, count: int) -> list[Written]:
    """Dialogues of an environment; like those of the corpus's own programs they end with the last call."""
    name = path.rstrip("/").rsplit("/", 1)[-1]
    found = practice_dialogues(path, n=count, seed=seed)
    return [_written(Dialogue(f"practice_{name}", p.messages[:-1], (f"{name}/{p.kind}",), ())) for p in found]


def write_corpus(seed: int, sizes: Sizes, workers: int = 2) -> Corpus:
    """The corpus of ``seed``: what each program of ``sizes`` writes in turn. A pure function of the two, for any ``workers``."""
    corpus = Corpus(seed)
    jobs = [
        (program, start, min(start + CHUNK, getattr(sizes, program)))
        for program in _PROGRAMS
        for start in range(0, getattr(sizes, program), CHUNK)
    ]
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers) as pool:
        practised = [pool.apply_async(_practised, (path, seed, sizes.practised)) for path in sizes.practice]
        for rows in (*pool.imap(partial(_chunk, seed=seed), jobs), *(p.get() for p in practised)):
            for text, source, questions, choices in rows:
                corpus.texts.append(text)
                corpus.origins.append(source)
                corpus.sources[source] += 1
                corpus.questions.update(questions)
                corpus.choices.update(choices)
        pool.close()  # workers end by themselves: one that handles SIGTERM may miss it while it waits for work, for good
        pool.join()
    return corpus


Row = dict[str, list[int]]


def tokenized(corpus: Corpus, tokenizer: PreTrainedTokenizerFast, max_length: int) -> tuple[list[Row], list[Row]]:
    """Drills and dialogues as rows for SFTTrainer: ``input_ids`` and ``labels`` (-100 but on what the assistant says).

    Dialogues longer than ``max_length`` are left out.
    """
    from frontier_tune.bases.tokenizer import encode_dialogue

    drills: list[tuple[float, Row]] = []
    dialogues: list[Row] = []
    seen: Counter[str] = Counter()
    for text, origin in zip(corpus.texts, corpus.origins, strict=True):
        ids, mask = encode_dialogue(tokenizer, text)
        seen[origin] += 1
        if len(ids) <= max_length:
            row = {"input_ids": ids, "labels": [t if m else -100 for t, m in zip(ids, mask, strict=True)]}
            if origin.endswith("drill"):  # the programs' drills take turns, each over the whole length
                drills.append((seen[origin] / corpus.sources[origin], row))
            else:
                dialogues.append(row)
    return [row for _, row in sorted(drills, key=lambda d: d[0])], dialogues


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
