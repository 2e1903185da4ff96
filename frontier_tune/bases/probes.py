"""Probe a base's skills one by one, before the reinforcement learning that stands on them is blamed.

Everything is teacher-forced: a call counts as right where the greedy choice is right at every one of its tokens, which is what
greedy decoding of that call would give.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from frontier_tune.bases.corpus.dialogues import Dialogue
from frontier_tune.bases.corpus.questions import Question
from frontier_tune.bases.corpus.sheets import make_scene
from frontier_tune.bases.tokenizer import encode_dialogue
from frontier_tune.contracts import Message
from frontier_tune.sdk.grammar import CALL, END, compact_dialogue

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

ALTERNATIVES = {
    "net_revenue": 18, "account_total": 12, "account_average": 12, "conversion": 12, "variance": 18, "ageing": 12, "quarter": 12,
    "repair": 18,
}  # fmt: skip


def probe(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, dialogues: Iterable[Dialogue], batch: int = 32
) -> dict[str, Any]:
    """Per question: ``right`` (share of whole answers that greedy decoding gives) and ``skill``.

    ``skill`` is exp(log n - mean NLL of the answer), for n equally likely alternatives (1 where the prompt says all): 1.0 where
    the base knows all but the coin, and is at chance among the alternatives.
    """
    import torch

    spans: dict[str, list[tuple[bool, float]]] = defaultdict(list)
    items = list(dialogues)
    for at in range(0, len(items), batch):
        part = items[at : at + batch]
        encoded = [encode_dialogue(tokenizer, compact_dialogue(d.messages)) for d in part]
        width = max(len(ids) for ids, _ in encoded)
        tokens = torch.full((len(part), width), int(tokenizer.pad_token_id))
        for i, (ids, _) in enumerate(encoded):
            tokens[i, : len(ids)] = torch.tensor(ids)
        with torch.no_grad():
            logits = model(input_ids=tokens, attention_mask=(tokens != tokenizer.pad_token_id).long()).logits[:, :-1].float()
        logp = logits.log_softmax(-1)
        best = logits.argmax(-1) == tokens[:, 1:]
        nll = -logp.gather(-1, tokens[:, 1:, None])[..., 0]
        for i, (_ids, mask) in enumerate(encoded):
            for name, start, stop in _answers(part[i], mask):
                right = all(bool(best[i, t - 1]) for t in range(start, stop) if mask[t])
                spans[name].append((right, float(sum(nll[i, t - 1] for t in range(start, stop) if mask[t]))))
    out = {}
    for name, values in sorted(spans.items()):
        n = ALTERNATIVES.get(name, 1)
        out[name] = {
            "n": len(values),
            "right": sum(r for r, _ in values) / len(values),
            "skill": math.exp(math.log(n) - sum(v for _, v in values) / len(values)),
        }
    return out


def _answers(dialogue: Dialogue, mask: list[int]) -> list[tuple[str, int, int]]:
    """Token span of each question's answer: all its calls, from the first read to submit."""
    calls = [m for m in dialogue.messages if m.role == "assistant"]
    runs, start = [], None
    for t, m in enumerate([*mask, 0]):
        if m and start is None:
            start = t
        elif not m and start is not None:
            runs.append((start, t))
            start = None
    out, first, q = [], 0, 0
    for i, call in enumerate(calls):
        if call.content == "submit":
            out.append((dialogue.questions[q], runs[first][0], runs[i][1]))
            first, q = i + 1, q + 1
    return out


def alternatives(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, question: Question, scenes: int = 12, seed: int = 0
) -> dict[str, float]:
    """How likely a base takes each alternative of a practice question: choice -> mean probability of the whole answering call.

    Probabilities are those at temperature 1, over ``scenes`` workbooks; what is left to 1 goes to calls that are no alternative.
    """
    import torch

    shares: dict[str, list[float]] = defaultdict(list)
    for index in range(scenes):
        rng = random.Random(f"alternatives/{question.name}/{seed}/{index}")
        scene = make_scene(rng, question.tables)
        calls: dict[str, str] = {}
        while len(calls) < ALTERNATIVES[question.name]:
            answer = question.ask(rng, scene)
            calls[answer.choice] = answer.call
        opening = [Message("user", scene.opening(answer.prompt))]
        for sheet in answer.reads:
            opening += [Message("assistant", f"read {sheet}"), Message("tool", scene.session.read(sheet))]
        context = tokenizer.encode(compact_dialogue(opening) + CALL, add_special_tokens=False)
        tails = [tokenizer.encode(call + END, add_special_tokens=False) for call in calls.values()]
        width = len(context) + max(map(len, tails))
        tokens = torch.full((len(tails), width), int(tokenizer.pad_token_id))
        for i, tail in enumerate(tails):
            tokens[i, : len(context) + len(tail)] = torch.tensor(context + tail)
        with torch.no_grad():
            logits = model(input_ids=tokens, attention_mask=(tokens != tokenizer.pad_token_id).long()).logits[:, :-1].float()
        logp = logits.log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
        for i, (choice, tail) in enumerate(zip(calls, tails, strict=True)):
            shares[choice].append(float(logp[i, len(context) - 1 : len(context) - 1 + len(tail)].sum().exp()))
    return {choice: sum(values) / len(values) for choice, values in sorted(shares.items())}


def chances(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, ways: Sequence[Sequence[Sequence[Message]]], batch: int = 48
) -> list[float]:
    """How likely a base goes each way of doing a kind of task (``sdk.practice.ways``), at temperature 1.

    The mean over the tasks of the probability of all that the assistant says in the way's dialogue.
    """
    import torch

    texts = list(dict.fromkeys(compact_dialogue(dialogue) for way in ways for dialogue in way))
    probability: dict[str, float] = {}
    for at in range(0, len(texts), batch):
        encoded = [encode_dialogue(tokenizer, text) for text in texts[at : at + batch]]
        width = max(len(ids) for ids, _ in encoded)
        tokens = torch.full((len(encoded), width), int(tokenizer.pad_token_id))
        said = torch.zeros((len(encoded), width), dtype=torch.bool)
        for i, (ids, mask) in enumerate(encoded):
            tokens[i, : len(ids)] = torch.tensor(ids)
            said[i, : len(ids)] = torch.tensor(mask, dtype=torch.bool)
        with torch.no_grad():
            logits = model(input_ids=tokens, attention_mask=(tokens != tokenizer.pad_token_id).long()).logits[:, :-1].float()
        logp = logits.log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0].masked_fill(~said[:, 1:], 0.0)
        probability |= dict(zip(texts[at : at + batch], logp.sum(-1).exp().tolist(), strict=True))
    return [sum(probability[compact_dialogue(dialogue)] for dialogue in way) / len(way) for way in ways]
