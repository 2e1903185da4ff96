"""vLLM's sampler with the plugin's kernel under it: what it reports, and that requests do not disturb each other's draws."""

from types import SimpleNamespace

import pytest
import torch

pytestmark = pytest.mark.slow
VOCABULARY = 50


@pytest.fixture(scope="module")
def plugin():
    pytest.importorskip("vllm")
    from frontier_tune.experts import vllm_plugin, vllm_plugin_sampling

    vllm_plugin.register()
    return vllm_plugin_sampling


def metadata(temperature, top_k=None, logprobs=0):
    from vllm.v1.sample.logits_processor import LogitsProcessors
    from vllm.v1.sample.metadata import SamplingMetadata

    rows, none = len(temperature), torch.empty(0)
    return SamplingMetadata(
        torch.tensor(temperature), all(t == 0 for t in temperature), all(t > 0 for t in temperature), None, top_k, {}, logprobs,
        True, None, none, none, none, [[] for _ in range(rows)], None, {}, LogitsProcessors(),
    )  # fmt: skip


def draw(logits, meta, seeds):
    from vllm.v1.sample.sampler import Sampler

    sampler = Sampler(logprobs_mode="processed_logprobs")
    sampler.draws = torch.tensor(seeds), torch.zeros(len(seeds), dtype=torch.long)
    out = sampler(logits.clone(), meta)
    return out.sampled_token_ids[:, 0], out.logprobs_tensors


def test_it_reports_what_the_stock_sampler_reports(plugin):
    logits = torch.randn(3, VOCABULARY, generator=torch.Generator().manual_seed(0))
    for count in (0, 4, -1):
        tokens, found = draw(logits, metadata([0.7, 1.3, 0.0], logprobs=count), [1, 2, 3])
        whole = (logits / torch.tensor([0.7, 1.3, 1.0])[:, None]).log_softmax(-1)
        assert tokens[2] == logits[2].argmax()
        if count == -1:
            assert torch.allclose(found.logprobs, whole, atol=1e-6)
            continue
        assert torch.equal(found.logprob_token_ids[:, 0], tokens) and found.logprobs.shape == (3, 1 + count)
        chosen = whole.gather(1, tokens.long()[:, None])
        assert torch.allclose(found.logprobs[:, :1], chosen, atol=1e-6)
        assert torch.equal(found.selected_token_ranks, (whole >= chosen).sum(-1))
        if count:
            assert torch.allclose(found.logprobs[:, 1:], whole.topk(count).values, atol=1e-6)


def test_what_others_ask_for_changes_no_draw(plugin):
    """Stock paths draw otherwise than the kernel: nobody gets there because of a neighbour's top-k or log-probabilities."""
    logits = torch.randn(40, VOCABULARY, generator=torch.Generator().manual_seed(1))
    alone, _ = draw(logits, metadata([1.0] * 40), list(range(40)))
    top_k = torch.full((40,), VOCABULARY)
    top_k[1::2] = 2
    beside, found = draw(logits, metadata([1.0] * 40, top_k=top_k, logprobs=3), list(range(40)))
    assert torch.equal(alone[::2], beside[::2])
    assert all(beside[i] in logits[i].topk(2).indices for i in range(1, 40, 2))
    chosen = torch.stack([logits[i].topk(2).values.log_softmax(-1).max() for i in range(1, 40, 2)])
    assert torch.allclose(found.logprobs[1::2, 1], chosen, atol=1e-6)  # of the distribution that was drawn from


def test_draws_follow_seed_and_place(plugin):
    def generator(seed):
        g = torch.Generator()
        g.manual_seed(seed)
        return g

    tokens, prompt = torch.tensor([9, 14, 7, 0]).numpy(), torch.tensor([9, 10, 7, 0]).numpy()
    batch = SimpleNamespace(
        num_reqs=3, generators={1: generator(2**64 - 1), 2: generator(5)}, num_tokens_no_spec=tokens, num_prompt_tokens=prompt
    )
    seeds, counts = plugin.draws(batch)
    assert counts.tolist() == [0, 4, 0] and seeds[1:].tolist() == [-1, 5]
    assert plugin.draws(batch)[0][0] != seeds[0]  # no seed: another draw each time
