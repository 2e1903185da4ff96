"""The policy: a transformers base, a PEFT adapter on it, and the forward over packed rows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.utils.hooks import RemovableHandle
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as hf_logging

from frontier_tune import recipe as recipes
from frontier_tune.contracts import BadInput
from frontier_tune.experts import canonical, families, lora_experts, quantized, selection
from frontier_tune.experts.routing import trainer
from frontier_tune.learning import attention, fused, memory, recompute, shard
from frontier_tune.learning.base_weights import BaseWeights
from frontier_tune.learning.logprobs import token_logprobs
from frontier_tune.learning.packing import Packed
from frontier_tune.recipe import Adapter

ROUTER = ".modules_to_save.default."  # in the name of a trained router's weight: PEFT's copy beside the base's own
# transformers ties no weights while it loads, by a patch of its class: two threads at once would leave that so for good.
_LOADING = threading.Lock()


class Policy:
    """A frozen base with a trainable adapter. ``named_parameters()`` are the adapter's alone, in a stable order.

    ``keeps_base``: whether the base is still there, beside what has become of it (it is not in ``full.FullPolicy``).
    """

    keeps_base = True

    def __init__(
        self,
        base_dir: str | Path,
        adapter: Adapter,
        seed: int,
        dtype: torch.dtype,
        device: torch.device,
        mesh: DeviceMesh | None = None,
        checkpointing: bool = False,
    ) -> None:
        """Load the base of ``base_dir`` and put a fresh adapter on it: A drawn from ``seed``, B zero, always in float32.

        With a ``mesh`` the base is split over its ranks, which must then run their forwards and backwards together (shard).
        ``checkpointing``: decoder layers keep their inputs alone for backward, which runs them again (recompute).

        Raises:
            BadInput: no base there, a dense or unsupported one, or LoRA targets that match nothing.
        """
        self.base_dir = str(Path(base_dir).resolve())
        if device.type == "cpu":
            memory.hand_back() if checkpointing or mesh is not None else memory.keep_freed()
        self._fingerprint: str | None = None
        if mesh is None:
            causal = _load_base(self.base_dir, dtype)
        else:
            causal, self._fingerprint = _load_shard(self.base_dir, dtype, device, mesh)
        self.config = causal.config
        self.model = self._made_trainable(causal, adapter, seed)
        fused.install(self.model)
        if device.type == "cpu":  # the sampler's plugin routes by the same op there, and by vLLM's own elsewhere
            trainer.install(self.model, strict=False)  # NaN logits make a loss of NaN, which the learner skips and counts
        self.model.eval()  # no dropout, no router jitter; gradients flow all the same
        if mesh is None:
            self.model.to(device)
        self.device = device
        self.rank, self.scaling = adapter.rank, adapter.alpha / adapter.rank
        self.selection: selection.Selection | None = None  # the experts that learn; None: all
        self.confined: list[RemovableHandle] = []  # what keeps the other experts from learning
        self._backbone: nn.Module = causal.model
        head: Tensor = causal.lm_head.weight
        self._project: Callable[..., tuple[Tensor, Tensor]] = lambda hidden, *rest: token_logprobs(hidden, head, *rest)
        if mesh is not None:
            self._project = shard.projection(causal, token_logprobs)
        self._rows: Tensor | None = None
        self.whole = False  # run the last MLP on all rows, whichever are needed
        _limit_rows(self._backbone, lambda: self._rows, self.last_rows)
        self.recomputing = False  # a layer is being run again, in backward
        if checkpointing:
            recompute.install(self._backbone, self._as_now)

    def _made_trainable(self, causal: Any, adapter: Adapter, seed: int) -> nn.Module:
        """The frozen ``causal`` with what learns: here an adapter on it. Called once."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.peft = families.adapted(causal, adapter)  # casts the adapter of a bfloat16 base to float32
        if adapter.experts:
            lora_experts.install(self.peft)
        model: nn.Module = self.peft
        return model

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]

    def parameter_groups(self, section: recipes.Learner) -> list[dict[str, Any]]:
        """What the optimizer takes. Routers are whole weights, not low-rank updates that start at nothing: they learn more slowly
        (``lr_ratio``), and don't decay, which would lead them to equal shares and not back to the base's."""
        low_rank = [p for n, p in self.named_parameters() if ROUTER not in n]
        routers = [p for n, p in self.named_parameters() if ROUTER in n]
        more = [{"params": routers, "weight_decay": 0.0, "lr_ratio": section.router_lr_ratio}] if routers else []
        return [{"params": low_rank}, *more]

    @torch.no_grad()
    def router_change(self) -> dict[str, float]:
        """``router_change``: norm of the trained routers' difference from the base's, relative to these. {} where none learn."""
        if not self.peft.peft_config["default"].modules_to_save:
            return {}
        own = {n: p for n, p in self.peft.named_parameters() if ROUTER in n}
        pairs = [(p, self.peft.get_parameter(n.replace(ROUTER, ".original_module.")).float()) for n, p in own.items()]
        change, size = (torch.stack(torch._foreach_norm(ts)).norm() for ts in ([a - b for a, b in pairs], [b for _, b in pairs]))
        return {"router_change": float(change / size)}

    def logprobs(self, packed: Packed, rows: Tensor, targets: Tensor, temperature: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy, [M] each, of ``targets`` as predicted at ``rows`` [M] of the pack."""
        # Members of a group may share a row; and where they part is not in their own order (packing lays groups out as trees).
        needed, place = torch.unique(rows, return_inverse=True)
        self._rows = needed
        try:
            output = self._backbone(
                input_ids=packed.tokens_T[None], position_ids=packed.positions_T[None], use_cache=False, packed=packed
            )
        finally:
            self._rows = None
        hidden = output.last_hidden_state[0]
        if not torch.equal(needed, rows):
            hidden = hidden.index_select(0, place)
        return self._project(hidden, targets, temperature)

    def fingerprint(self) -> str:
        """Tells bases apart: the digest of the input embedding, which every training of a base changes."""
        return self._fingerprint or canonical.digest(self.embedding())

    def embedding(self) -> Tensor:
        """The input embedding, [V, H]."""
        model: Any = self.model
        weight: Tensor = model.get_input_embeddings().weight
        return weight

    def last_rows(self) -> Tensor | None:
        """The rows that the last MLP is run on; None for all."""
        return None if self.whole else self._rows

    def _as_now(self) -> Callable[[], AbstractContextManager[None]]:
        """For a layer that is run now and again in backward: what puts back the rows that it is run on."""
        rows = self._rows

        @contextmanager
        def put_back() -> Iterator[None]:
            outer, self._rows, self.recomputing = self._rows, rows, True
            try:
                yield
            finally:
                self._rows, self.recomputing = outer, False

        return put_back

    @contextmanager
    def base(self) -> Iterator[None]:
        """Run as the base: adapter disabled, no gradients."""
        with torch.no_grad(), self.peft.disable_adapter():
            yield

    def canonical(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The adapter's tensors in the canonical exported form, complete or AdapterMismatch."""
        tensors, unused = canonical.from_state(self.state(), self.config, self.rank, self.scaling, dtype)
        config = self.peft.peft_config["default"]
        expected = canonical.expected_shapes(
            self.config,
            sorted(config.target_modules or []),
            bool(config.target_parameters),
            self.rank,
            bool(config.modules_to_save),
        )
        canonical.verify(tensors, expected, "learner", unused)
        return tensors

    def state(self) -> dict[str, Tensor]:
        """The adapter as in PEFT's file."""
        state: dict[str, Tensor] = get_peft_model_state_dict(self.peft)
        return state

    @contextmanager
    def adapter_of(self, directory: str | Path) -> Iterator[None]:
        """While inside, the adapter's values are those of a PEFT directory. Raises BadInput where that is of another shape."""
        config, other = canonical.read_config(directory), selection.load_tensors(directory)
        kept = {name: t.detach().clone() for name, t in self.state().items()}
        shapes = {name: t.shape for name, t in kept.items()}
        if {name: t.shape for name, t in other.items()} != shapes or canonical.scaling_of(config) != self.scaling:
            raise BadInput(f"{directory}: this adapter has other targets, rank or alpha than the recipe's adapter section")
        try:
            set_peft_model_state_dict(self.peft, other)
            yield
        finally:
            set_peft_model_state_dict(self.peft, kept)


@contextmanager
def without_bars() -> Iterator[None]:
    """While inside, transformers shows no progress."""
    bar = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if bar:
            hf_logging.enable_progress_bar()


def _load_base(base_dir: str, dtype: torch.dtype) -> nn.Module:
    packed = quantized.unpacked(_config(base_dir))
    with _LOADING, without_bars():
        model, info = AutoModelForCausalLM.from_pretrained(
            base_dir, dtype=dtype, attn_implementation=attention.NAME, local_files_only=True, output_loading_info=True, **packed
        )
    problems = {k: sorted(map(str, info[k])) for k in ("missing_keys", "mismatched_keys", "unexpected_keys") if info.get(k)}
    if problems:
        shown = "; ".join(f"{len(v)} {k.split('_')[0]} ({', '.join(v[:3])})" for k, v in problems.items())
        raise BadInput(f"base: the weights in {base_dir} don't fit its config.json: {shown}")
    if packed:
        quantized.settle(model, dtype)
    return _frozen(model, base_dir)


def _load_shard(base_dir: str, dtype: torch.dtype, device: torch.device, mesh: DeviceMesh) -> tuple[Any, str]:
    """This rank's share of a base, and the whole base's fingerprint."""
    config = _config(base_dir)
    if kind := quantized.method(config):
        raise BadInput(f"placement.shard_base: {base_dir} is quantized by {kind}, and is read by slices; set it to false")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention.NAME)
    model = _frozen(model, base_dir)
    shard.shard(model, mesh)
    with BaseWeights(base_dir) as weights:
        shard.load(model, weights, dtype, device)
        return model, shard.digest(weights, "model.embed_tokens.weight", dtype)


def _config(base_dir: str) -> Any:
    if not (Path(base_dir) / "config.json").is_file():
        raise BadInput(f"base: {base_dir} holds no model (no config.json); give a directory in transformers' format")
    config = AutoConfig.from_pretrained(base_dir, local_files_only=True)
    families.moe_shape(config)  # refuses dense and unknown bases before weights are read
    return config


def _frozen(model: Any, base_dir: str) -> nn.Module:
    """Raises BadInput where it has what the learner doesn't compute."""
    config = model.config
    if getattr(model.lm_head, "bias", None) is not None or getattr(config, "final_logit_softcapping", None):
        raise BadInput(f"base: {base_dir} has an output bias or soft-capped logits, which the learner does not support")
    model.requires_grad_(False)
    result: nn.Module = model
    return result


def _limit_rows(backbone: nn.Module, rows: Any, mlp_rows: Any) -> None:
    """After the last attention only the rows that predict a token matter: run the last MLP and the last norm on those alone.

    ``rows()`` is the [M] index of them, or None for all; ``mlp_rows()`` the same for the MLP. The model then returns [1, M, H].
    """
    mlp, norm = backbone.layers[-1].mlp, backbone.norm
    mlp_forward, norm_forward = mlp.forward, norm.forward

    def limited_mlp(hidden: Tensor) -> Any:
        index = mlp_rows()
        if index is None:
            return mlp_forward(hidden)
        out = mlp_forward(hidden.index_select(1, index))
        if isinstance(out, tuple):  # gpt-oss: its output, and routing weights that nobody reads
            return torch.zeros_like(hidden).index_copy(1, index, out[0]), *out[1:]
        return torch.zeros_like(hidden).index_copy(1, index, out)

    def limited_norm(hidden: Tensor) -> Tensor:
        index = rows()
        return norm_forward(hidden if index is None else hidden.index_select(1, index))

    mlp.forward, norm.forward = limited_mlp, limited_norm
