"""Our workflow as TRL's environment: schemas by transformers' own reader, a rollout by hand, and a training step of TRL's own."""

import inspect
import json
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import pytest

from frontier_tune.interop.trl import trl_environment, trl_rows
from frontier_tune.sdk import load_environment

ROOT = Path(__file__).parents[1] / "sandbox" / "workspace"


def public_tools(environment: Any) -> dict[str, Any]:
    """As GRPOTrainer finds them: functions of the class but reset, get_reward and private ones."""
    names = [name for name, _ in inspect.getmembers(type(environment), predicate=inspect.isfunction)]
    return {n: getattr(environment, n) for n in names if n not in ("reset", "get_reward") and not n.startswith("_")}


def test_transformers_reads_the_schemas_that_we_derive() -> None:
    from transformers.utils import get_json_schema

    tools = public_tools(trl_environment("envs/count_up", ROOT)())
    for ours in load_environment("envs/count_up", ROOT).schemas:
        theirs = get_json_schema(tools[ours["function"]["name"]])["function"]
        assert theirs["name"] == ours["function"]["name"] and theirs["description"] == ours["function"]["description"]
        assert theirs["parameters"]["properties"] == ours["function"]["parameters"]["properties"]
        assert theirs["parameters"].get("required", []) == ours["function"]["parameters"]["required"]


def test_a_rollout() -> None:
    rows = trl_rows(load_environment("envs/count_up", ROOT), "train", 2, 5)
    assert rows[0]["prompt"] == [{"role": "user", "content": "reach 5"}] and json.loads(rows[0]["task"])["kind"] == "count"
    environment = trl_environment("envs/count_up", ROOT)()
    tools = public_tools(environment)
    environment.reset(**rows[0])
    assert tools["add"](amount=5) == "total 5" and tools["submit"]() == "thank you"
    assert environment.get_reward() == 1.0
    assert tools["submit"]() == "error: the episode is over"
    environment.reset(**rows[1])
    assert tools["add"](5) == "total 5"
    assert environment.get_reward() == 0.25  # not handed in: graded as it stands
    with pytest.raises(ValueError, match="unknown argument 'x'"):
        environment.reset(**rows[0])
        tools["add"](x=1)


@pytest.mark.slow
def test_a_training_step_of_trl_itself(tmp_path: Path) -> None:
    """TRL's own trainer, tool loop and reward on our environment; only what the model says is given, so that it says calls."""
    import transformers
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer
    from trl.chat_template_utils import qwen3_chat_template

    class Scripted(GRPOTrainer):
        """Of each prompt's two samples, one solves the task and one hands in at once."""

        asked: ClassVar[Counter[str]] = Counter()  # first answers by the task's number

        def _generate_single_turn(self, prompt_ids: Any, *_: Any, **__: Any) -> tuple[list[list[int]], None]:
            said = []
            for ids in prompt_ids:
                text = tokenizer.decode(ids)
                target = text.rsplit("reach ", 1)[1].split("<", 1)[0].strip()
                if "<tool_response>" not in text:
                    self.asked[target] += 1
                    solves = self.asked[target] == 1
                    call = (
                        {"name": "add", "arguments": {"amount": int(target)}} if solves else {"name": "submit", "arguments": {}}
                    )
                elif "total" in text.rsplit("<tool_response>", 1)[1]:
                    call = {"name": "submit", "arguments": {}}
                else:
                    said.append(tokenizer.encode("done<|im_end|>"))
                    continue
                said.append(tokenizer.encode(f"<tool_call>\n{json.dumps(call)}\n</tool_call><|im_end|>"))
            return said, None

    words = ["<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<|pad|>"]
    tokenizer = byte_tokenizer(words)
    tokenizer.chat_template = qwen3_chat_template
    config = transformers.Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=4096, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = transformers.Qwen3ForCausalLM(config)
    rows = trl_rows(load_environment("envs/count_up", ROOT), "train", 2, 5)
    arguments = GRPOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=4, num_generations=2, max_steps=1, max_completion_length=400,
        report_to="none", use_cpu=True, bf16=False, logging_steps=1, save_strategy="no", learning_rate=1e-3,
    )  # fmt: skip
    trainer = Scripted(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        environment_factory=trl_environment("envs/count_up", ROOT),
    )
    before = model.lm_head.weight.detach().clone()
    trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "reward" in entry)
    assert logged["rewards/Workflow/mean"] == logged["reward"] == 0.5 and logged["reward_std"] > 0.5
    assert logged["tools/call_frequency"] == 1.5 and logged["tools/failure_frequency"] == 0
    assert not before.equal(model.lm_head.weight)


def byte_tokenizer(special: list[str]) -> Any:
    """Bytes, and some words that are one token each."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|pad|>")
    made.add_tokens(special)
    return made
