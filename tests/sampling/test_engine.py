"""The sampler against transformers and PEFT: log-probabilities, isolation, versions, caches, failures."""

import json
import math
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file

from frontier_tune import recipe
from frontier_tune.contracts import BadInput, Blame, Request, SamplingParams
from frontier_tune.experts import canonical
from frontier_tune.sampling.engine import EngineFailed, VLLMSampler
from tests import tiny
from tests.sampling.scoring import SEQUENCES, at_once, gap, tokens

pytestmark = pytest.mark.slow


def drain(sampler, requests, client=""):
    done = sampler.exchange(requests, client)
    while len(done) < len(requests):
        done += sampler.exchange([], client)
    return {c.request_id: c for c in done}


@pytest.mark.parametrize(
    "family,dtype,bound",
    [
        ("qwen3_moe", "float32", 1e-5),
        ("olmoe", "float32", 1e-5),
        ("mixtral", "float32", 1e-5),
        ("gpt_oss", "float32", 1e-5),  # sinks, a window, biases, a clamped gate
        ("qwen3_moe", "bfloat16", 2e-2),
    ],
)
def test_scores_are_those_of_transformers_and_peft(setups, family, dtype, bound):
    s = setups(family, dtype)
    base = s.sampler.score(SEQUENCES, 0)
    assert gap(base, s.reference(SEQUENCES, adapter=False)) < bound
    # In bfloat16 a large adapter turns rounding into other experts, in transformers as here.
    path, version = s.write("parity", std=0.3 if dtype == "float32" else 0.1), s.next_version()
    s.sampler.sync(path, version)
    adapted = s.sampler.score(SEQUENCES, version)
    assert gap(adapted, s.reference(SEQUENCES)) < bound
    assert gap(adapted, base) > 10 * bound  # the adapter does something
    want = canonical.digests(canonical.load(path, s.config, getattr(torch, dtype)))
    assert s.sampler.resident(version) == want
    assert s.sampler.resident(0) == {}


def off_grid(sampler):
    """How far differences of logits are from multiples of 2^-16, in those: next to 0 where logits are bfloat16, else 1/4."""
    last = torch.tensor([row[-1] for row in sampler.score([[*SEQUENCES[0], t] for t in range(2, 66)], 0)], dtype=torch.float64)
    steps = (last - last[0]) * 2**16
    return float((steps - steps.round()).abs().mean())


def kept_head(sampler):
    """The copy that the plugin keeps of the engine's output embedding."""
    from frontier_tune.experts import vllm_plugin_head  # imports vllm

    worker = sampler._call(lambda backend: backend.engine.model_executor.driver_worker.worker)
    held = [m.__dict__.get(vllm_plugin_head._COPY) for m in worker.model_runner.get_model().modules()]
    (found,) = [h[1] for h in held if h is not None]
    return found


def test_a_head_in_float32_does_not_round_logits(setups):
    s = setups("qwen3_moe", "bfloat16")
    section = recipe.Sampler(dtype="bfloat16", head_dtype="float32", max_model_len=300, kv_cache_mb=16, threads=1)
    with VLLMSampler(s.base, section, log_file=s.root / "head.log") as sampler:
        assert off_grid(sampler) > 0.15 and off_grid(s.sampler) < 0.06
        before = sampler.score(SEQUENCES)
        assert gap(before, s.reference(SEQUENCES, adapter=False)) < 2e-2
        made = kept_head(sampler)
        assert made.dtype == torch.float32 and sampler.score(SEQUENCES) == before and kept_head(sampler) is made  # cast once
        # A reload writes into the same memory: a copy that outlived it would go on giving the old logits without a word.
        tensors = load_file(s.base / "model.safetensors")
        head = "lm_head.weight" if "lm_head.weight" in tensors else "model.embed_tokens.weight"
        try:
            save_file(tensors | {head: tensors[head] * 0}, s.base / "model.safetensors", metadata={"format": "pt"})
            sampler.reload()
            assert all(x == pytest.approx(-math.log(tiny.VOCABULARY), abs=1e-6) for row in sampler.score(SEQUENCES) for x in row)
            assert kept_head(sampler) is not made and not kept_head(sampler).any()
        finally:
            save_file(tensors, s.base / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_are_applied_without_merged_copies(setups, dtype):
    s = setups("qwen3_moe", dtype)
    version = s.next_version()
    s.sampler.sync(s.write("copies"), version)
    s.sampler.score(SEQUENCES, version)
    from frontier_tune.experts import vllm_plugin_experts  # imports vllm

    worker = s.sampler._call(lambda backend: backend.engine.model_executor.driver_worker.worker)
    weights = s.config.num_experts * 3 * s.config.hidden_size * s.config.moe_intermediate_size
    layers = vllm_plugin_experts.experts_of(worker.model_runner.get_model())
    assert len(layers) == s.config.num_hidden_layers
    for experts in layers:
        assert experts.native and experts._packed is None
        assert experts._adapters.tensor.numel() < weights  # of both slots


def test_a_zero_adapter_is_the_base_exactly(qwen):
    path, version = qwen.write("zero", std=0.0), qwen.next_version()
    qwen.sampler.sync(path, version)
    assert qwen.sampler.score(SEQUENCES, version) == qwen.sampler.score(SEQUENCES, 0)


def test_a_mixed_batch_leaves_base_rows_alone(qwen):
    """Base rows between those of two adapters, so that no slot is empty: slot -1 taken as an index would hit the last one."""
    numbers = [0, qwen.next_version(), qwen.next_version()]
    qwen.sampler.sync(qwen.write("mixed", seed=2, std=0.5), numbers[1], activate=False)
    qwen.sampler.sync(qwen.write("mixed-too", seed=40, std=0.5), numbers[2], activate=False)
    alone = {n: qwen.sampler.score(SEQUENCES, n) for n in numbers}
    results = at_once(qwen.sampler, numbers)
    assert gap(results[0], qwen.reference(SEQUENCES, adapter=False)) < 1e-5
    for n in numbers:
        assert gap(results[n], alone[n]) < 1e-6
    for n in numbers[1:]:
        assert gap(alone[n], alone[0]) > 0.01
        qwen.sampler.release(n)


def test_logprobs_are_of_the_distribution_that_was_drawn_from(qwen):
    """With a temperature: log-softmax of logits / temperature, and tokens drawn in those proportions."""
    version, prompt, temperature = qwen.next_version(), tokens(30, 5), 0.5
    qwen.sampler.sync(qwen.write("draw", seed=3), version)
    n = 600
    requests = [Request(str(i), tuple(prompt), SamplingParams(1, temperature, seed=i)) for i in range(n)]
    done = drain(qwen.sampler, requests)
    with torch.no_grad():
        want = (qwen.peft(input_ids=torch.tensor([prompt])).logits[0, -1].float() / temperature).log_softmax(-1)
    for c in done.values():
        assert c.version == version and c.finish == "length"
        assert c.logprobs[0] == pytest.approx(want[c.tokens[0]].item(), abs=1e-4)
    # chi-square over the likely tokens, the rest pooled; 99.99 % quantile by Wilson and Hilferty (1931)
    counts = torch.zeros(tiny.VOCABULARY)
    for c in done.values():
        counts[c.tokens[0]] += 1
    expected = want.exp() * n
    likely = expected > 5
    observed = torch.cat([counts[likely], counts[~likely].sum()[None]])
    expected = torch.cat([expected[likely], expected[~likely].sum()[None]])
    k = len(observed) - 1
    assert k > 5
    assert ((observed - expected) ** 2 / expected).sum().item() < k * (1 - 2 / (9 * k) + 3.72 * math.sqrt(2 / (9 * k))) ** 3


def test_sampling_agrees_with_scoring_and_seeds_repeat(qwen):
    version, prompt = qwen.next_version(), tuple(tokens(33, 6))
    qwen.sampler.sync(qwen.write("seeds", seed=4), version)
    params = [SamplingParams(12, 1.0, seed=i % 4) for i in range(8)]
    first = drain(qwen.sampler, [Request(str(i), prompt, p) for i, p in enumerate(params)])
    # once more among others, one by one, in another order
    again = {i: drain(qwen.sampler, [Request("x", prompt, params[int(i)])])["x"] for i in ("7", "3", "0")}
    assert all(first[i].tokens == again[i].tokens for i in again)
    assert first["0"].tokens == first["4"].tokens != first["1"].tokens
    scored = qwen.sampler.score([[*prompt, *first[str(i)].tokens] for i in range(8)], version)
    assert gap([row[len(prompt) - 1 :] for row in scored], [list(first[str(i)].logprobs) for i in range(8)]) < 1e-5


def test_greedy_and_stop_tokens(qwen):
    version, prompt = qwen.next_version(), tokens(20, 7)
    qwen.sampler.sync(qwen.write("greedy", seed=5), version)
    free = drain(qwen.sampler, [Request("a", tuple(prompt), SamplingParams(6, 0.0))])["a"]
    context = list(prompt)
    with torch.no_grad():
        for _ in range(6):
            context.append(qwen.peft(input_ids=torch.tensor([context])).logits[0, -1].argmax().item())
    assert list(free.tokens) == context[20:] and free.finish == "length"
    at = next(i for i in range(6) if free.tokens[i] not in free.tokens[:i] and i > 0)
    stopped = drain(qwen.sampler, [Request("a", tuple(prompt), SamplingParams(6, 0.0, stop_token_ids=(free.tokens[at],)))])["a"]
    assert stopped.tokens == free.tokens[: at + 1] and stopped.finish == "stop"  # the stop token is included


def test_seeded_requests_survive_a_prompt_read_in_chunks(qwen):
    """More prompt tokens than one step reads (4096): the last prompt is cut in two."""
    requests = [Request(str(i), tuple(tokens(290, i)), SamplingParams(3, 1.0, seed=i)) for i in range(20)]
    together = drain(qwen.sampler, requests)
    alone = drain(qwen.sampler, [requests[14]])
    assert together["14"].tokens == alone["14"].tokens
    assert {c.finish for c in together.values()} == {"length"}


def test_the_prefix_cache_never_serves_an_old_policy(qwen):
    """The same long prompt under three policies: each must have its own first-token distribution."""
    prompt = tuple(tokens(290, 8))
    seen = []
    for seed in (6, 7):
        version = qwen.next_version()
        qwen.sampler.sync(qwen.write(f"cache{seed}", seed=seed), version)
        for _ in range(2):  # the second time the prompt's blocks are in the cache
            c = drain(qwen.sampler, [Request("a", prompt, SamplingParams(4, 0.0))])["a"]
            want = qwen.reference([[*prompt, *c.tokens]])[0][-4:]
            assert c.version == version and gap([list(c.logprobs)], [want]) < 1e-5
        seen.append(c.logprobs)
    assert seen[0] != seen[1]


def test_an_old_version_in_flight_keeps_its_own_weights_after_a_sync(qwen):
    """Requests of three versions at once, more than there are adapter slots: nobody's weights change under a request."""
    prompt, made = tuple(tokens(20, 9)), {}
    versions = [qwen.next_version() for _ in range(3)]
    for n, version in enumerate(versions):
        path = qwen.write(f"flight{n}", seed=20 + n)
        qwen.sampler.sync(path, version)
        qwen.sampler._put(
            lambda backend, v=version: qwen.sampler._submit(
                backend, "flight", [Request(str(v), prompt, SamplingParams(120, 1.0, seed=v))]
            )
        )
        with qwen.sampler._lock:
            qwen.sampler._open["flight"] = qwen.sampler._open.get("flight", 0) + 1
        made[version] = n
        for file in path.iterdir():  # the caller's copy is not needed any more
            file.unlink()
    done = {}
    while len(done) < 3:
        done |= {c.version: c for c in qwen.sampler.exchange([], "flight")}
    for version, n in made.items():
        qwen.write("flight-reference", seed=20 + n)
        want = qwen.reference([[*prompt, *done[version].tokens]])[0][-120:]
        assert gap([list(done[version].logprobs)], [want]) < 1e-5
    with pytest.raises(BadInput, match="isn't in the sampler"):
        qwen.sampler.score([[1, 2]], versions[0])


def test_an_inactive_version_is_scored_but_not_sampled_from(qwen):
    current, canary = qwen.next_version(), qwen.next_version()
    qwen.sampler.sync(qwen.write("now", seed=30), current)
    qwen.sampler.sync(qwen.write("canary", seed=31), canary, activate=False)
    assert gap(qwen.sampler.score(SEQUENCES, canary), qwen.reference(SEQUENCES)) < 1e-5
    assert drain(qwen.sampler, [Request("a", (5, 6), SamplingParams(1))])["a"].version == current == qwen.sampler.version()
    qwen.sampler.release(canary)
    with pytest.raises(BadInput, match="isn't in the sampler"):
        qwen.sampler.score(SEQUENCES, canary)


def test_requests_pinned_to_a_version_and_a_prefix_cache_that_cannot_be_reset(qwen):
    """While a request holds blocks vLLM can't reset its cache: a version's name in each block's hash keeps policies apart."""
    old, new, canary = (qwen.next_version() for _ in range(3))
    prompt = tuple(tokens(290, 12))
    qwen.sampler.sync(qwen.write("pinned-old", seed=50), old)
    drain(qwen.sampler, [Request("warm", prompt, SamplingParams(1, 0.0))])
    held = Request("held", prompt, SamplingParams(100, 1.0, seed=1))
    assert qwen.sampler.exchange([held], "held", wait=0.001) == []
    for n, version in enumerate((new, canary)):
        qwen.sampler.sync(qwen.write("pinned", seed=51 + n), version, activate=version == new)
        while not (done := qwen.sampler.exchange([Request("a", prompt, SamplingParams(4, 0.0))], "gate", version)):
            pass
        want = qwen.reference([[*prompt, *done[0].tokens]])[0][-4:]
        assert done[0].version == version and gap([list(done[0].logprobs)], [want]) < 1e-5
    assert qwen.sampler.version() == new
    qwen.sampler.release(canary)
    (done,) = qwen.sampler.exchange([], "held")
    qwen.write("pinned-reference", seed=50)
    assert done.version == old
    assert gap([list(done.logprobs)], [qwen.reference([[*prompt, *done.tokens]])[0][-len(done.tokens) :]]) < 1e-5


def test_an_adapter_of_chosen_experts_alone_is_the_whole_one(qwen):
    """Synced from the small file, and loaded by vLLM itself from it, as `vllm serve` with the plugin does."""
    from safetensors.torch import load_file, save_file
    from vllm.lora.request import LoRARequest

    from frontier_tune.experts import resident, selection
    from frontier_tune.experts.families import moe_shape

    whole = qwen.write("selected", seed=50, std=0.5)
    shape = moe_shape(qwen.config)
    chosen = selection.Selection(shape.num_experts, 4, {layer: (0, shape.num_experts - 1) for layer in shape.layers})
    tensors = selection.narrowed(load_file(str(whole / "adapter_model.safetensors")), chosen)
    save_file(tensors, str(whole / "adapter_model.safetensors"))
    small = qwen.write("small", seed=50, std=0.5)
    save_file(selection.gathered(tensors, chosen), str(small / "adapter_model.safetensors"))
    chosen.write(small, "chosen")
    want = canonical.load(whole, qwen.config)
    version = qwen.next_version()
    qwen.sampler.sync(small, version)
    assert qwen.sampler.resident(version) == canonical.digests(want)

    def load(backend):
        backend.engine.add_lora(LoRARequest("itself", 999, str(small), is_3d_lora_weight=True))
        held = resident.read(backend.manager, 999, qwen.config, canonical.read_config(small))
        backend.engine.remove_lora(999)
        return held

    assert canonical.digests(qwen.sampler._call(load)) == canonical.digests(want)


def test_reloading_the_same_weights_changes_nothing_and_new_ones_are_read(qwen):
    from transformers import AutoModelForCausalLM

    before = qwen.sampler.score(SEQUENCES, 0)
    qwen.sampler.reload()
    assert qwen.sampler.score(SEQUENCES, 0) == before
    original = AutoModelForCausalLM.from_pretrained(qwen.base, dtype=torch.float32)
    other = AutoModelForCausalLM.from_config(qwen.config)
    try:
        other.save_pretrained(qwen.base)
        qwen.sampler.reload()
        with torch.no_grad():
            s = SEQUENCES[0]
            want = other(input_ids=torch.tensor([s])).logits[0].log_softmax(-1)[:-1].gather(1, torch.tensor(s[1:])[:, None])[:, 0]
        assert gap([qwen.sampler.score([s], 0)[0]], [want.tolist()]) < 1e-5
    finally:
        original.save_pretrained(qwen.base)
        qwen.sampler.reload()
    assert qwen.sampler.score(SEQUENCES, 0) == before


def test_what_cannot_be_run_is_said_and_breaks_nothing(qwen):
    s = qwen.sampler
    assert s.exchange([]) == []
    done = drain(s, [Request("long", tuple([5] * 400), SamplingParams(4)), Request("odd", (tiny.VOCABULARY,), SamplingParams(4)),
                     Request("fine", (5, 6), SamplingParams(2))])  # fmt: skip
    assert done["long"].finish == "error" and "max_model_len" in done["long"].error
    assert done["odd"].finish == "error" and "ids from 0" in done["odd"].error
    assert done["fine"].finish == "length" and len(done["fine"].tokens) == 2
    with pytest.raises(BadInput, match="policy version 4711"):
        s.score([[1, 2]], 4711)
    with pytest.raises(BadInput, match="max_model_len"):
        s.score([[5] * 301], 0)
    assert len(s.score([[5] * 300], 0)[0]) == 299
    version = qwen.next_version()
    path = qwen.write("twice")
    s.sync(path, version)
    with pytest.raises(BadInput, match="synced before"):
        s.sync(path, version)
    with pytest.raises(BadInput, match="no adapter here"):
        s.sync(qwen.root, qwen.next_version())
    settings = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps(settings | {"init_lora_weights": "pissa"}))
    with pytest.raises(BadInput, match="only plain LoRA adapters work here; this one is LORA with init_lora_weights 'pissa'"):
        s.sync(path, qwen.next_version())
    (path / "adapter_config.json").write_text(json.dumps(settings))
    content = (path / "adapter_model.safetensors").read_bytes()
    (path / "adapter_model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(BadInput, match="adapter_model.safetensors: can't be read, so it was cut off"):
        s.sync(path, qwen.next_version())
    (done,) = drain(s, [Request("cold", (5, 6), SamplingParams(2, 0.005))]).values()  # vLLM would sample at 0.01
    assert done.finish == "error" and "0 or at least 0.01" in done.error
    assert len(s.score([[5, 6]], version)[0]) == 1


def test_what_vllm_itself_refuses_does_not_end_the_engine(qwen, monkeypatch):
    path = qwen.write("refused")

    def refuse(backend):
        def add_lora(request):
            raise ValueError("no such thing")

        monkeypatch.setattr(backend.engine, "add_lora", add_lora)

    qwen.sampler._call(refuse)
    with pytest.raises(BadInput, match="vLLM does not take this adapter: no such thing"):
        qwen.sampler.sync(path, qwen.next_version())
    monkeypatch.undo()
    version = qwen.next_version()
    qwen.sampler.sync(path, version)
    assert gap(qwen.sampler.score(SEQUENCES, version), qwen.reference(SEQUENCES)) < 1e-5


def test_experts_are_found_under_transformers_names(setups, monkeypatch):
    """An exported adapter as it is: vLLM calls Mixtral's experts otherwise, and would serve the base without a word."""
    from frontier_tune.experts import resident

    s = setups("mixtral", "float32")
    monkeypatch.setattr(resident, "vllm_name", lambda name, family: name)
    path, version = s.write("as-exported", std=0.3), s.next_version()
    s.sampler.sync(path, version)
    assert gap(s.sampler.score(SEQUENCES, version), s.reference(SEQUENCES)) < 1e-5
    assert s.sampler.resident(version) == canonical.digests(canonical.load(path, s.config, torch.float32))


def test_clients_get_their_own_completions(qwen):
    found = {}

    def play(name):
        found[name] = drain(qwen.sampler, [Request(f"{name}{i}", (7, 8, 9), SamplingParams(5)) for i in range(5)], name)

    threads = [threading.Thread(target=play, args=(n,)) for n in "abc"]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(sorted(found[n]) == [f"{n}{i}" for i in range(5)] for n in "abc")


def test_what_a_client_that_is_gone_has_in_flight_is_kept_for_nobody(qwen):
    """Its process died. What it asked for is sampled to its end, beside and before what another one asks for."""
    s = qwen.sampler
    asked = [Request(f"g{i}", (5, 9, i), SamplingParams(40, 1.0, seed=i)) for i in range(3)]
    assert s.exchange(asked, "gone", wait=0.0) == []
    s.forget(kept=s._open.keys() - {"gone"})
    assert drain(s, [Request("stays", (5, 9), SamplingParams(80, 1.0, seed=1))])["stays"].finish == "length"
    assert "gone" not in s._finished and "gone" not in s._open
    assert s.exchange(asked, "gone") == []  # a call of its that was still on the way


def test_chatter_goes_to_the_log(qwen, capfd):
    qwen.sampler.score(SEQUENCES, 0)
    out = capfd.readouterr()
    assert out.out == "" and out.err == ""
    text = (qwen.root / "engine.log").read_text()
    assert "MoE layers with LoRA use the CPU kernels" in text


def test_zz_a_broken_engine_reaches_every_waiting_caller(setups):
    """Last of its family: the engine is gone afterwards."""
    s, errors = setups("olmoe").sampler, []

    def wait(function):
        try:
            function()
        except EngineFailed as e:
            errors.append(e)

    def explode():
        raise MemoryError("injected")

    calls = [lambda: drain(s, [Request("a", (5, 6), SamplingParams(200))]), lambda: s.score([[5] * 200], 0)]
    threads = [threading.Thread(target=wait, args=(f,)) for f in calls]

    def sabotage(backend):
        backend.engine.step = explode
        for t in threads:
            t.start()

    s._call(sabotage)  # back when all callers are on their way
    for t in threads:
        t.join(timeout=30)
    assert not any(t.is_alive() for t in threads)
    assert len(errors) == 2 and all(e.blame is Blame.INFRASTRUCTURE and "injected" in str(e) for e in errors)
    with pytest.raises(EngineFailed, match="injected"):
        s.exchange([Request("b", (5,), SamplingParams(1))])
    s.close()
