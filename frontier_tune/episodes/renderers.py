"""Renderers: messages to token ids. Append-only: what was once in the context never changes.

So a policy is trained on exactly the tokens that it saw and sampled.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

from frontier_tune.contracts import BadInput, Message
from frontier_tune.sdk.grammar import (
    CALL,
    END,
    MARKERS,
    TOOL,
    USER,
    GrammarError,
    ToolCall,
    bind,
    compact_dialogue,
    render_compact,
    render_json,
)
from frontier_tune.sdk.tools import Signature

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Renderer(Protocol):
    """How a dialogue becomes tokens. A sampled turn is never rendered: its tokens are those that were sampled. What somebody else
    did instead (a demonstration) is: ``turn`` gives what a policy would have had to sample for it."""

    stop_ids: tuple[int, ...]

    def begin(self, messages: Sequence[Message]) -> list[int]:
        """Tokens of the opening messages, up to where the first assistant turn starts."""
        ...

    def render(self, messages: Sequence[Message], after: Sequence[int] = ()) -> list[int]:
        """Tokens to append after a sampled turn (its stop token included) for new messages, up to the next assistant turn.

        ``after``: that turn's tokens. In some formats an answer repeats the name of the tool that was called.
        """
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of a sampled turn, without its stop token."""
        ...

    def turn(self, said: ToolCall | str, signatures: Mapping[str, Signature]) -> list[int]:
        """Tokens of an assistant turn that makes a call (or says a text as it is), its stop token included.

        Raises BadInput where the call fits no signature or the text would not be read back as it was written.
        """
        ...


class CompactRenderer:
    """The compact rendering of ``sdk.grammar`` for tokenizers that have its four markers as single tokens (the nano base)."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        ids = [tokenizer.encode(marker, add_special_tokens=False) for marker in MARKERS]
        wrong = [marker for marker, i in zip(MARKERS, ids) if len(i) != 1]
        if wrong:
            raise BadInput(f"tokenizer: {', '.join(wrong)} must be single tokens for the compact rendering")
        self._call = ids[MARKERS.index(CALL)]
        self.stop_ids: tuple[int, ...] = tuple(ids[MARKERS.index(END)])

    def begin(self, messages: Sequence[Message]) -> list[int]:
        return self.render(messages)

    def render(self, messages: Sequence[Message], after: Sequence[int] = ()) -> list[int]:
        return [*self._tokenizer.encode(compact_dialogue(messages), add_special_tokens=False), *self._call]

    def decode(self, tokens: Sequence[int]) -> str:
        return _decode(self._tokenizer, tokens, self.stop_ids)

    def turn(self, said: ToolCall | str, signatures: Mapping[str, Signature]) -> list[int]:
        try:
            text = said if isinstance(said, str) else render_compact(said, signatures)
        except GrammarError as e:
            raise BadInput(str(e)) from None
        return _turn(self, self._tokenizer, text)


class ChatRenderer:
    """Chat templates, tool calls as JSON in the assistant's text.

    Only the text that a template puts after an assistant turn is taken from it, so that history is never rendered again.
    Raises BadInput for a tokenizer without a template, and for a template that writes a turn differently once more follow, be it
    that it drops a model's thoughts: whoever serves the policy with it would show it another past than it was trained on.

    A template that refuses tool messages, or leaves them out, gets them as the user's (``observations_as``); whoever serves the
    policy has to do the same.
    """

    _SAID = ("\u2402first turn\u2403", "\u2402second turn\u2403")
    _THOUGHT = "<think>\nfirst thought\n</think>\n\n"  # as models that think in tags write it

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tools: Sequence[dict[str, Any]] | None = None) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise BadInput("tokenizer: it has neither a chat template nor the compact markers; choose an instruction-tuned base")
        self._tokenizer = tokenizer
        self._tools = list(tools) if tools else None
        self.observations_as: Literal["tool", "user"] = "tool"
        self._control, self._markup = _control_tokens(tokenizer, "")
        self._control, self._markup = _control_tokens(tokenizer, self._neutral())
        self._describe_tools = bool(tools) and tools[0]["function"]["name"] not in self._text([Message("user", "-")])  # type: ignore[index]
        self.stop_ids, self._stop = self._find_stop()
        try:
            self._probe_all()
        except BadInput as refused:
            self.observations_as = "user"
            try:
                self._probe_all()
            except BadInput:
                raise refused from None

    def begin(self, messages: Sequence[Message]) -> list[int]:
        return self._encode(self._text(self._with_tools(messages)))

    def render(self, messages: Sequence[Message], after: Sequence[int] = ()) -> list[int]:
        return self._encode(self._after_turn(messages))

    def decode(self, tokens: Sequence[int]) -> str:
        """The text behind the model's thoughts, where it thinks in ``<think>`` tags."""
        return _decode(self._tokenizer, tokens, self.stop_ids).rpartition("</think>")[2].strip()

    def turn(self, said: ToolCall | str, signatures: Mapping[str, Signature]) -> list[int]:
        """A call is JSON, in ``<tool_call>`` tags where the template itself tells the model to write them."""
        if isinstance(said, str):
            return _turn(self, self._tokenizer, said)
        try:
            bind(said.name, said.arguments, signatures)
        except GrammarError as e:
            raise BadInput(str(e)) from None
        tagged = self._tools is not None and "<tool_call>" in self._text([Message("user", "-")])
        text = render_json(said)
        return _turn(self, self._tokenizer, f"<tool_call>\n{text}\n</tool_call>" if tagged else text)

    def _after_turn(self, messages: Sequence[Message]) -> str:
        """What the template writes between the stop text of an assistant turn and the start of the next."""
        said = self._SAID[0]
        text = self._text([Message("user", "-"), Message("assistant", said), *messages])
        tail = text.rpartition(said)[2]
        if not tail.startswith(self._stop):
            raise BadInput(f"chat template: it ends an assistant turn with {tail[:20]!r} here and with {self._stop!r} elsewhere")
        return tail[len(self._stop) :]

    def _find_stop(self) -> tuple[tuple[int, ...], str]:
        text = self._text([Message("user", "-"), Message("assistant", self._SAID[0]), Message("user", "-")])
        head, found, tail = text.rpartition(self._SAID[0])
        if not found:
            raise BadInput("chat template: it drops what the assistant said; history would be rewritten")
        first = self._encode(tail)[0]
        stop = self._tokenizer.convert_ids_to_tokens(first)
        special = set(self._tokenizer.all_special_ids) | set(self._tokenizer.get_added_vocab().values())
        if first not in special or not tail.startswith(stop):
            raise BadInput(f"chat template: no special token ends an assistant turn (it goes on with {tail[:20]!r})")
        eos = self._tokenizer.eos_token_id
        return (first, eos) if eos is not None and eos != first else (first,), stop

    def _probe_all(self) -> None:
        """What the model says is kept as it is, and so are its thoughts, unless the template writes their tags itself."""
        self._probe(self._SAID)
        if "think>" not in self._text([Message("user", self._SAID[0])]).rpartition(self._SAID[0])[2]:
            self._probe((self._THOUGHT + self._SAID[0], self._THOUGHT + self._SAID[1]))

    def _probe(self, turns: tuple[str, str]) -> None:
        """Two turns rendered as a whole must be what we append piece by piece, and hold what the environment said."""
        opening, first, second = [Message("user", "do it")], [Message("tool", "result 1")], [Message("tool", "result 2")]
        said = [Message("assistant", text) for text in turns]
        whole = self._text(self._with_tools([*opening, said[0], *first, said[1], *second]))
        begin = self._text(self._with_tools(opening))
        stop = self._stop
        pieces = [begin, turns[0], stop, self._after_turn(first), turns[1], stop, self._after_turn(second)]
        ours = "".join(pieces)
        if whole != ours:
            at = next((i for i, (a, b) in enumerate(zip(whole, ours)) if a != b), min(len(whole), len(ours)))
            raise BadInput(
                "chat template: it rewrites history, so that a policy would be trained on tokens that it never saw; "
                f"at character {at} it writes {whole[at : at + 40]!r} where {ours[at : at + 40]!r} was; choose another template"
            )
        if any(m.content not in whole for m in (*first, *second)):
            raise BadInput("chat template: it leaves tool messages out, so that a policy would never see what its calls returned")

    def _with_tools(self, messages: Sequence[Message]) -> list[Message]:
        """A template that ignores tools gets them as a system message."""
        if not self._describe_tools:
            return list(messages)
        listed = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in self._tools or [])
        call = '{"name": "...", "arguments": {...}}'
        return [Message("system", f"Answer with one tool call as JSON, {call}, and nothing else. Tools:\n{listed}"), *messages]

    def _text(self, messages: Sequence[Message]) -> str:
        dialogue: list[dict[str, str]] = []
        for m in messages:
            role, content = self.observations_as if m.role == "tool" else m.role, self._plain(m)
            if self.observations_as == "user" and role == "user" and dialogue and dialogue[-1]["role"] == "user":
                dialogue[-1]["content"] += "\n" + content  # such templates want turns that alternate
            else:
                dialogue.append({"role": role, "content": content})
        try:
            text = self._tokenizer.apply_chat_template(dialogue, tools=self._tools, tokenize=False, add_generation_prompt=True)
        except Exception as e:  # templates raise whatever they like
            roles = ", ".join(dict.fromkeys(d["role"] for d in dialogue))
            raise BadInput(f"chat template: it refuses a dialogue with messages of {roles}: {type(e).__name__}: {e}") from e
        assert isinstance(text, str)
        return text

    def _neutral(self) -> str:
        """What the template writes around messages without content, of all the roles that it takes, and no tools."""
        tools, self._tools = self._tools, None
        found = ""
        try:
            for roles in (("system", "user", "assistant"), ("user", "assistant", "tool"), ("user", "assistant")):
                with contextlib.suppress(BadInput):
                    found += self._text([Message(role, "-") for role in roles])
        finally:
            self._tools = tools
        return found

    def _plain(self, message: Message) -> str:
        """Content with control tokens broken up, so that no data can pose as the start or end of a message; in what tools answer
        also the template's tags, which an author's own prompt may well name (``<think>``)."""
        if message.role == "assistant":
            return message.content  # an example of the author's, or a probe of ours
        control = self._markup if message.role == "tool" else self._control
        return control.sub(lambda found: f"{found[0][0]} {found[0][1:]}", message.content) if control else message.content

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))


# Markers that some templates write as plain text (OLMoE's <|user|>, Llama 2's [INST]).
_WRITTEN = re.compile(r"<\|[^<>|\s]{1,40}\|>|\[/?[A-Z_]{2,20}\]|<</?SYS>>")


def _control_tokens(tokenizer: PreTrainedTokenizerBase, rendered: str) -> tuple[re.Pattern[str] | None, re.Pattern[str] | None]:
    """What finds special tokens and the markers of a ``rendered`` dialogue in a text, and what finds added tokens in angle
    brackets, too. Headers in plain words (``User:``) are found by neither."""
    added = {str(t) for t in tokenizer.added_tokens_decoder.values()}
    special = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special} | set(map(str, tokenizer.all_special_tokens))
    special |= set(_WRITTEN.findall(rendered))
    tags = {t for t in added if t.startswith("<") and t.endswith(">")}

    def finding(tokens: set[str]) -> re.Pattern[str] | None:
        longest_first = sorted((t for t in tokens if len(t.strip()) > 1), key=lambda t: (-len(t), t))
        return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    return finding(special), finding(special | tags)


def renderer_for(tokenizer: PreTrainedTokenizerBase, tools: Sequence[dict[str, Any]] | None = None) -> Renderer:
    """The compact rendering where the tokenizer has its markers, its family's where it has one here (``families``), else its chat
    template. ``tools``: ``WorkflowEnv.schemas``."""
    from frontier_tune.episodes.families import DeepSeekRenderer, HarmonyRenderer

    vocabulary = tokenizer.get_vocab()
    if all(marker in vocabulary for marker in (USER, CALL, TOOL, END)):
        return CompactRenderer(tokenizer)
    for family in (HarmonyRenderer, DeepSeekRenderer):
        if family.fits(tokenizer):
            return family(tokenizer, tools)
    return ChatRenderer(tokenizer, tools)


def _decode(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], stop_ids: tuple[int, ...]) -> str:
    kept = list(tokens[:-1] if tokens and tokens[-1] in stop_ids else tokens)
    return str(tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _turn(renderer: Renderer, tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    tokens = list(tokenizer.encode(text, add_special_tokens=False))
    special = {*renderer.stop_ids, *tokenizer.all_special_ids}  # text that poses as the end of a message
    if not tokens or special & set(tokens) or renderer.decode(tokens).strip() != text.strip():
        raise BadInput(f"the tokenizer does not give back an assistant turn as it was written: {text[:60]!r}")
    return [*tokens, renderer.stop_ids[0]]
