"""Hand a tuned model over: the adapter as it is (PEFT's format), its chosen experts alone, or merged into a copy of its base.

Both are checked before anyone sees them and appear under their final name whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from frontier_tune.contracts import BadInput, GateFailed, content_hash
from frontier_tune.experts import canonical, families, quantized, selection, whole

if TYPE_CHECKING:
    import torch

Layout = Literal["peft", "compact", "merged"]
ADAPTER_FILES = (canonical.CONFIG, canonical.WEIGHTS)
PROVENANCE = "frontier_tune.json"  # beside an adapter that left its run: the base it belongs to, by name and digest
PICKLED = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
# What a served copy needs beside its weights; copied from the base byte for byte.
TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "chat_template*")
# Mean |log-probability| gap, in nats, between base + adapter and the merged copy read back from disk.
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 1e-2}
ROUTERS = "it brings trained routers, which PEFT loads and stock vLLM refuses in an adapter; for vLLM, export --layout merged"
PROBE_SEQUENCES, PROBE_TOKENS = 4, 64
_IN_FILE = "base_model.model."  # before each name in PEFT's file


@dataclass(frozen=True)
class Rounding:
    """What the number format of a merged copy lost of the routers' change, which the adapter keeps in float32.

    ``share``: norm of what is lost by that of the change, over all routers, 0 to 1 (a base's weights have that format, so that
    rounding never leads further away than back to them). ``rows`` of the ``changed`` ones (an expert's router weights in a layer)
    are the base's again.
    """

    share: float
    rows: int
    changed: int

    def __str__(self) -> str:
        if not self.share:
            return ""
        said = (
            f"its number format lost {self.share:.2%} of the routers' change (by norm); {self.rows} of {self.changed} rows that "
            "had changed are the base's again"
        )
        if self.share < 0.5:
            return said
        return f"WARNING: most of what the routers learned is not in this copy: {said}. --layout peft keeps them in float32"


@dataclass(frozen=True)
class Exported:
    """Where it lies; ``gap`` is the mean |log-probability| gap of a merged copy on the probe (None for an adapter).

    ``remark``: what whoever serves it has to know. ``rounding``: of a merged copy of an adapter with trained routers, else None.
    """

    path: Path
    layout: Layout
    files: dict[str, str]
    gap: float | None = None
    remark: str = ""
    rounding: Rounding | None = None


def export(source: Path, layout: Layout, out: Path, base_dir: Path | None = None) -> Exported:
    """Export a run directory's adapter, or an adapter directory, to the new directory ``out``.

    ``peft`` is what any PEFT reads, and stock vLLM but for what ``remark`` says: all experts, those that were not chosen at zero.
    ``compact`` holds the chosen experts alone (``experts.selection``), for vLLM with this project's plugin. ``base_dir`` is the
    base that the adapter was trained on: needed for ``merged``; else it adds the check that the adapter fits it. Raises BadInput
    where ``out`` exists, ``source`` holds no adapter, it was changed after the run's record was written, or it belongs to another
    base; GateFailed where the merged copy does not compute what base + adapter compute.
    """
    if layout not in get_args(Layout):
        raise BadInput(f"export: layout '{layout}' is unknown; choose one of {', '.join(get_args(Layout))}")
    if out.exists() or out.is_symlink():
        raise BadInput(f"{out}: exists already; name a new directory or remove it")
    adapter, record = find_adapter(source)
    _check_files(adapter)
    config = canonical.read_config(adapter)
    _check_recorded(adapter, record)
    if base_dir is not None:
        _check_base(adapter, config, base_dir, record)
    elif layout == "merged":
        raise BadInput("export: a merged copy needs the base; name its directory")
    with _whole(out) as work:
        gap, rounding = None, None
        if layout == "merged":
            assert base_dir is not None
            with tempfile.TemporaryDirectory(prefix="frontier-tune-") as whole_adapter:
                _copy(adapter, Path(whole_adapter))
                _restore(Path(whole_adapter), "peft")  # PEFT reads no file of chosen experts alone
                gap, rounding = _merge(Path(whole_adapter), base_dir, work)
        else:
            _copy(adapter, work)
            _restore(work, layout)
            _name_base(work)
        files = {p.relative_to(work).as_posix(): _digest(p) for p in sorted(work.rglob("*")) if p.is_file()}
    remarks = [str(rounding)] if rounding else []
    if layout == "peft" and canonical.trains_routers(config):
        remarks.append(ROUTERS)
    if layout != "merged" and config.get("target_parameters") and (said := _names(adapter, base_dir)):
        remarks.append(said)
    return Exported(out, layout, files, gap, "; ".join(filter(None, remarks)), rounding)


def _names(adapter: Path, base_dir: Path | None) -> str:
    """What stock vLLM makes of an adapter whose experts it calls otherwise; empty where it doesn't, or that isn't known."""
    sources = [base_dir / "config.json"] if base_dir else []
    told = [json.loads(p.read_text(encoding="utf-8")) for p in (*sources, adapter / PROVENANCE) if p.is_file()]
    family = families.FAMILIES.get(next((str(t["model_type"]) for t in told if "model_type" in t), ""))
    if family is None or family.experts == family.vllm_experts:
        return ""
    return (
        f"stock vLLM calls this base's experts {family.vllm_experts} and, without a word, leaves those of an adapter out that "
        f"calls them {family.experts}: serve it with this project's plugin, which finds them, or export --layout merged"
    )


def _copy(adapter: Path, work: Path) -> None:
    for name in (*ADAPTER_FILES, PROVENANCE, selection.FILE):
        if not (adapter / name).is_file():
            continue
        shutil.copyfile(adapter / name, work / name)
        if _digest(work / name) != _digest(adapter / name):
            raise GateFailed(f"export: the copy of {name} differs from the original; the disk is not to be trusted")


def _restore(work: Path, layout: Layout) -> None:
    """Bring a copied adapter into ``layout`` where it is in another; GateFailed unless it reads back as the same adapter."""
    found = selection.read(work)
    if layout == "compact" and found is None:
        raise BadInput(
            "export: this adapter adapts all experts; choose some with 'frontier-tune experts RUN --out DIR', or train with "
            "adapter.expert_mass"
        )
    stored = "chosen" if layout == "compact" else "all"
    if found is None or (found[1] == stored and stored == "chosen"):
        return
    from safetensors.torch import save_file

    whole = selection.narrowed(selection.load_tensors(work), found[0])
    tensors = selection.gathered(whole, found[0]) if stored == "chosen" else whole
    save_file(tensors, str(work / canonical.WEIGHTS), metadata={"format": "pt"})
    found[0].write(work, stored)
    again = selection.load_tensors(work)
    if set(again) != set(whole) or any(not again[n].equal(t) for n, t in whole.items()):
        raise GateFailed(f"export: the {layout} copy does not read back as the adapter that it was made from")


def _name_base(work: Path) -> None:
    """Call the base what the recipe calls it, in PEFT's file too: where it lies on this machine says nothing on another."""
    path, said = work / canonical.CONFIG, work / PROVENANCE
    config = json.loads(path.read_text(encoding="utf-8"))
    named = str(config.get("base_model_name_or_path") or "")
    if not Path(named).is_absolute():
        return
    called = str(json.loads(said.read_text(encoding="utf-8"))["base"]) if said.is_file() else named
    config["base_model_name_or_path"] = families.base_name(called) if Path(called).is_absolute() else called
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def find_adapter(source: Path) -> tuple[Path, dict[str, Any] | None]:
    """The adapter directory of ``source`` (a run, or an adapter itself) and the run's record, where there is one."""
    adapter = source / "adapter" if (source / "adapter").is_dir() else source
    if not adapter.is_dir():
        raise BadInput(f"{source}: no such run or adapter directory")
    for model in (source, source / "model"):
        if (model / whole.DIGESTS).is_file():
            raise BadInput(
                f"{model}: all weights were trained (learner.trainable: all), so that there is no adapter to export. That "
                "directory is the tuned model itself, in transformers' format with its tokenizer: serve it, or copy it, as it is"
            )
    path = adapter.parent / "record.json"
    if adapter.name != "adapter" or not path.is_file():
        return adapter, None
    try:
        record = json.loads(path.read_bytes())
        _ = record["subject"], record["predicate"]["buildDefinition"]["resolvedDependencies"]
    except (ValueError, KeyError, TypeError) as e:
        raise BadInput(f"{path}: not a run record ({e}); 'frontier-tune verify' says more") from None
    return adapter, record


def _check_files(adapter: Path) -> None:
    for path in adapter.iterdir():
        if path.suffix in PICKLED:
            raise BadInput(f"{path}: may hold a pickle, which can run code when read; only safetensors are exported")


def _check_recorded(adapter: Path, record: Mapping[str, Any] | None) -> None:
    if record is None:
        return
    recorded = {str(s["name"]): s["digest"]["sha256"] for s in record["subject"]}
    for name in ADAPTER_FILES:
        if recorded.get(f"adapter/{name}") != _digest(adapter / name):
            raise BadInput(
                f"{adapter / name}: is not the file that record.json lists; restore it, or export the adapter of another run"
            )


def _check_base(adapter: Path, config: Mapping[str, Any], base_dir: Path, record: Mapping[str, Any] | None) -> None:
    """The base is the one that the record lists, file by file, or else the provenance file, or else PEFT's; every tensor fits."""
    from transformers import AutoConfig

    if not (base_dir / "config.json").is_file():
        raise BadInput(f"{base_dir}: no base here (config.json is missing)")
    base = None
    if record is not None:
        base = next((d for d in record["predicate"]["buildDefinition"]["resolvedDependencies"] if d["name"] == "base"), None)
    if base is not None:
        for name, digest in base["annotations"]["files"].items():
            if not name.endswith((".safetensors", ".json")):
                continue
            if not (base_dir / name).is_file() or _digest(base_dir / name) != digest:
                raise BadInput(
                    f"{base_dir}: is not the base of this adapter: {name} is not the file that record.json lists "
                    f"for base '{base.get('uri')}'"
                )
    elif (adapter / PROVENANCE).is_file():
        said = json.loads((adapter / PROVENANCE).read_text())
        if said["base_sha256"] != _tree_digest(base_dir):
            raise BadInput(
                f"{adapter}: was trained on base '{said['base']}' (SHA-256 {said['base_sha256'][:12]}), {base_dir} is another"
            )
    elif (named := config.get("base_model_name_or_path")) and families.base_name(base_dir) not in (
        named,
        families.base_name(named),
    ):
        raise BadInput(f"{adapter}: was trained on base '{named}', not on '{base_dir}'; name that base")
    try:
        canonical.load(adapter, AutoConfig.from_pretrained(str(base_dir), local_files_only=True))
    except canonical.AdapterMismatch as e:
        raise BadInput(f"{adapter}: does not fit the base {base_dir}: {e}") from None


def _merge(adapter: Path, base_dir: Path, work: Path) -> tuple[float, Rounding | None]:
    """Merge with stock PEFT, save, read back and compare on a fixed random probe. Returns the mean gap in nats, and what trained
    routers lost: a probe does not see it where all that they learned is less than its tolerance."""
    import torch
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM

    unpacked = quantized.unpacked(AutoConfig.from_pretrained(str(base_dir), local_files_only=True))
    model = AutoModelForCausalLM.from_pretrained(str(base_dir), dtype="auto", local_files_only=True, **unpacked)
    if unpacked:  # every number of such a base is a bfloat16 one
        quantized.settle(model, torch.bfloat16)
    dtype = str(model.dtype).removeprefix("torch.")
    vocabulary = model.config.get_text_config().vocab_size
    tuned = PeftModel.from_pretrained(model, str(adapter)).eval()
    loaded, stored = get_peft_model_state_dict(tuned, save_embedding_layers=False), load_file(str(adapter / canonical.WEIGHTS))
    # Routers become the base's type here, as all of a merged copy does; low-rank matrices are float32 on both sides.
    lost = [n for n, t in stored.items() if n not in loaded or not torch.equal(loaded[n], t.to(loaded[n].dtype))]
    if lost:
        raise GateFailed(f"export: PEFT did not load {len(lost)} of {len(stored)} tensors of {adapter} (first: {lost[0]})")
    routers = _routers(tuned, stored)
    probe = torch.randint(0, vocabulary, (PROBE_SEQUENCES, PROBE_TOKENS), generator=torch.Generator().manual_seed(0))
    wanted = _log_probabilities(tuned, probe)
    merged = tuned.merge_and_unload(safe_merge=True)
    merged.save_pretrained(str(work))
    for pattern in TOKENIZER_FILES:
        for path in base_dir.glob(pattern):
            shutil.copyfile(path, work / path.name)
    del merged, tuned, model
    again = AutoModelForCausalLM.from_pretrained(str(work), dtype="auto", local_files_only=True).eval()
    gap = float((_log_probabilities(again, probe) - wanted).abs().mean())
    if not gap <= TOLERANCE.get(dtype, min(TOLERANCE.values())):  # NaN fails too
        raise GateFailed(
            f"export: the merged copy's log-probabilities differ from base + adapter by {gap:.2g} nats on average ({dtype})"
        )
    return gap, _rounding(again, routers)


def _routers(tuned: Any, stored: Mapping[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """By name in a plain model: the base's routers, [E, H], and the adapter's, both in float32."""
    names = [n for n in stored if str(canonical.canonical_name(n, tuned.config)).endswith(".router")]
    base = {n: tuned.get_parameter(n.removesuffix("weight") + "original_module.weight").detach().float() for n in names}
    return {n.removeprefix(_IN_FILE): (base[n], stored[n].float()) for n in names}


def _rounding(merged: Any, routers: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> Rounding | None:
    """Of the merged copy as it was read back. None without trained routers."""
    change = lost = 0.0
    rows = changed = 0
    for name, (base_EH, wanted_EH) in routers.items():
        got_EH = merged.get_parameter(name).detach().float()
        change += float((wanted_EH - base_EH).double().square().sum())
        lost += float((wanted_EH - got_EH).double().square().sum())
        moved_E = (wanted_EH != base_EH).any(1)
        changed += int(moved_E.sum())
        rows += int((moved_E & (got_EH == base_EH).all(1)).sum())
    return Rounding((lost / change) ** 0.5 if change else 0.0, rows, changed) if routers else None


def _log_probabilities(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probability of every token but the first, in fp32. [sequences, tokens - 1]"""
    import torch

    with torch.no_grad():
        logits = model(input_ids=tokens).logits[:, :-1].float()
    return logits.log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]


def _digest(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _tree_digest(directory: Path) -> str:
    """As governance digests a tree: of its path-to-digest mapping."""
    return content_hash({p.relative_to(directory).as_posix(): _digest(p) for p in directory.rglob("*") if p.is_file()})


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A working directory beside ``out`` that takes its name at the end, or goes away where the body raises."""
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield work
        for path in work.rglob("*"):
            if path.is_file():
                with path.open("rb") as f:
                    os.fsync(f.fileno())
        work.chmod(0o755)
        os.rename(work, out)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
