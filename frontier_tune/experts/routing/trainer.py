"""The routing op in place of transformers' own routers.

Their ``torch.topk`` settles ties in an order that nobody states; the sampler's side must settle them alike, so install this
together with ``vllm_plugin_router``, or neither. Router logits are computed in float32 whatever the model's dtype, on both sides:
rounded to bfloat16, several tokens in a hundred have a tie at the last place.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frontier_tune.contracts import BadInput
from frontier_tune.experts.routing.op import register, route

# Routers by class name -> whether they renormalize. All of them: softmax over linear logits, no limits by groups; they return
# (logits [T, E], weights [T, K], ids [T, K]). gpt-oss takes the softmax over the chosen logits, which is the renormalized one.
# DeepSeek's routers choose by biased scores and stay stock, in the trainer as in the sampler.
ROUTERS: dict[str, Callable[[nn.Module], bool]] = {
    "Qwen3MoeTopKRouter": lambda router: bool(router.norm_topk_prob),
    "OlmoeTopKRouter": lambda router: bool(router.norm_topk_prob),
    "MixtralTopKRouter": lambda router: True,
    "GptOssTopKRouter": lambda router: True,
}
ATOL = 1e-6


class RouterForward:
    """The replaced ``forward`` of one router: as the stock one, with logits and weights in float32.

    ``kept``: where a caller puts a list, the first forward leaves its ids [T, K] in it, and later ones take those.
    """

    def __init__(self, router: nn.Module, renormalize: bool, strict: bool = True) -> None:
        self.router, self.renormalize, self.strict = router, renormalize, strict
        self.kept: list[Tensor] | None = None

    def __call__(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        router = self.router
        bias = getattr(router, "bias", None)
        x_TH = hidden_states.reshape(-1, router.hidden_dim).float()
        logits_TE = F.linear(x_TH, router.weight.float(), None if bias is None else bias.float())
        weights_TK, ids_TK = self.route(logits_TE, self.kept[0] if self.kept else None)
        if self.kept == []:
            self.kept.append(ids_TK)
        return logits_TE, weights_TK, ids_TK.long()

    def route(self, logits_TE: Tensor, forced_TK: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Weights and ids [T, K]: the router's own choice, or ``forced_TK`` with the weights that the logits give it."""
        strict = self.strict and logits_TE.device.type == "cpu"  # elsewhere it would wait for the device; NaN is loud, too
        return route(logits_TE, self.router.top_k, renormalize=self.renormalize, forced=forced_TK, strict=strict)


def _verify(name: str, router: nn.Module, renormalize: bool) -> None:
    """Raise BadInput unless the op gives what the stock router gives, for random weights and inputs."""
    twin = copy.deepcopy(router).float()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / twin.hidden_dim**0.5)
        x = torch.randn(64, twin.hidden_dim, generator=generator).to(twin.weight.device)
        theirs, ours = twin(x), RouterForward(twin, renormalize)(x)
    same = (
        isinstance(theirs, tuple)
        and [t.shape for t in theirs] == [t.shape for t in ours]
        and torch.allclose(theirs[0], ours[0], atol=1e-5)
        and torch.allclose(theirs[1].float(), ours[1], atol=ATOL, rtol=0)
        and bool((theirs[2] == ours[2]).all())  # random float32 logits have no ties
    )
    if not same:
        import transformers

        raise BadInput(
            f"{name}: {type(router).__name__} of transformers {transformers.__version__} routes otherwise than the routing op; "
            "use a version that this was tested with (requirements/), or leave the stock routers on both sides"
        )


def install(model: nn.Module, strict: bool = True) -> int:
    """Put the routing op under every router of ``model`` whose convention is known; returns how many there are.

    0 means that the family's routers stay stock: then the sampler's must stay stock, too, which they do for the same families.
    Any number of calls. The state dict and the parameters stay what they are. On a CPU a token without a routing (NaN logits)
    raises; with ``strict`` false its weights are NaN, as on other devices, for whoever looks at the loss.

    Raises:
        BadInput: a router does not give what the op gives for the same input (another version of transformers).
    """
    routers = [
        (n, m) for n, m in model.named_modules() if type(m).__name__ in ROUTERS and type(m).__module__.startswith("transformers.")
    ]
    verified: set[tuple[type, bool]] = set()
    for name, router in routers:
        if isinstance(router.forward, RouterForward):
            router.forward.strict = strict
            continue
        register()
        renormalize = ROUTERS[type(router).__name__](router)
        if (type(router), renormalize) not in verified:
            _verify(name, router, renormalize)
            verified.add((type(router), renormalize))
        router.forward = RouterForward(router, renormalize, strict)
    return len(routers)
