"""Engines are shared: one a family for all tests of one process."""

import pytest
import torch

from tests import tiny


def perturb(model, seed, std):
    """Fill LoRA weights with noise: a fresh B is zero and would hide every mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.copy_(torch.randn(p.shape, generator=generator) * std)


class Setup:
    """A base on disk, stock PEFT on stock transformers as the oracle, and the sampler under test."""

    def __init__(self, root, family, dtype="float32"):
        from peft import get_peft_model
        from transformers import AutoConfig, AutoModelForCausalLM

        from frontier_tune import recipe
        from frontier_tune.experts import families
        from frontier_tune.sampling.engine import VLLMSampler

        self.root, self.base = root, tiny.build_base(root / "base", family)
        self.adapter = recipe.Adapter(rank=4, alpha=6.0)
        self.config = AutoConfig.from_pretrained(self.base)
        model = AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32)
        self.peft = get_peft_model(model, families.peft_config(self.adapter, self.config)).eval()
        self._versions = 0
        section = recipe.Sampler(dtype=dtype, max_model_len=300, max_sequences=32, kv_cache_mb=64, threads=1)
        routes = dtype == "bfloat16"  # that is where learner and sampler route otherwise
        self.sampler = VLLMSampler(self.base, section, self.adapter, log_file=root / "engine.log", routes=routes)

    def next_version(self):
        self._versions += 1
        return self._versions

    def write(self, name, seed=1, std=0.3):
        """Save an adapter of noise; PEFT keeps holding it."""
        perturb(self.peft, seed, std)
        self.peft.save_pretrained(self.root / name)
        return self.root / name

    def reference(self, sequences, adapter=True):
        """Log-probabilities by transformers and PEFT. [len - 1] each."""
        import contextlib

        out = []
        with torch.no_grad(), contextlib.nullcontext() if adapter else self.peft.disable_adapter():
            for s in sequences:
                logits = self.peft(input_ids=torch.tensor([s])).logits[0].float().log_softmax(-1)
                out.append(logits[:-1].gather(1, torch.tensor(s[1:])[:, None])[:, 0].tolist())
        return out


@pytest.fixture(scope="session")
def setups(tmp_path_factory):
    made = {}

    def get(family, dtype="float32"):
        if (family, dtype) not in made:
            made[family, dtype] = Setup(tmp_path_factory.mktemp(f"{family}-{dtype}"), family, dtype)
        return made[family, dtype]

    yield get
    for setup in made.values():
        setup.sampler.close()


@pytest.fixture
def qwen(setups):
    return setups("qwen3_moe")
