"""A tokenizer of the compact rendering, one with a chat template, and a sampler that follows a script."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from frontier_tune.contracts import Completion, Request

WORKSPACE = Path(__file__).parents[1] / "sandbox" / "workspace"
CHATML = (
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t.function.name }}: {{ t.function.description }}\n"
    "{% endfor %}<|im_end|>\n"
    "{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(special: Sequence[str], eos: str, template: str | None = None) -> Any:
    """Bytes as tokens, plus ``special``."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(["add submit total reach error: 12 13 14"] * 9, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos, additional_special_tokens=list(special))
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="session")
def compact() -> Any:
    return make_tokenizer(["<|user|>", "<|call|>", "<|tool|>", "<|end|>"], "<|end|>")


@pytest.fixture(scope="session")
def chat() -> Any:
    return make_tokenizer(["<|im_start|>", "<|im_end|>"], "<|im_end|>", CHATML)


class ScriptedSampler:
    """Finishes one request at a time, in an order drawn from ``seed``; ``script(context)`` gives the action's text."""

    def __init__(self, tokenizer: Any, script: Callable[[str], str], stop: str = "<|end|>", seed: int = 0) -> None:
        self.tokenizer, self.script = tokenizer, script
        self.stop = tokenizer.convert_tokens_to_ids(stop)
        self.random = random.Random(seed)
        self.pending: list[Request] = []
        self.largest = 0

    def exchange(self, requests: Sequence[Request]) -> list[Completion]:
        self.pending += requests
        self.largest = max(self.largest, len(self.pending))
        assert self.pending, "nothing to wait for: this would block for ever"
        return [self.finish(self.pending.pop(self.random.randrange(len(self.pending))))]

    def finish(self, request: Request) -> Completion:
        text = self.script(self.tokenizer.decode(request.tokens))
        if text.startswith("!"):
            return Completion(request.id, (), (), 7, "error", text[1:])
        tokens = [*self.tokenizer.encode(text, add_special_tokens=False), self.stop][: request.params.max_tokens]
        logprobs = tuple(-(request.params.seed or 0) / 2**31 - i for i in range(len(tokens)))
        return Completion(request.id, tuple(tokens), logprobs, 7, "stop" if tokens[-1] == self.stop else "length")

    def score(self, sequences: Sequence[Sequence[int]], version: int) -> list[list[float]]:
        raise NotImplementedError
