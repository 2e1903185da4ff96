"""Which base a recipe means: on this machine, downloaded only where the recipe allows it, or a config.json to plan from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frontier_tune import bases
from frontier_tune.contracts import BadInput
from frontier_tune.recipe import Recipe


@dataclass(frozen=True)
class Planned:
    """What a plan is made from. ``directory`` is None where there is a config.json and nothing else."""

    config: Any
    directory: Path | None
    source: str


def find(recipe: Recipe) -> Path:
    """The directory of a recipe's base. Raises BadInput where it isn't here and the recipe doesn't allow a download."""
    return here(recipe.base, recipe.base_download)


def here(name: str, download: bool = False) -> Path:
    """The directory of base ``name`` on this machine. Raises BadInput where it isn't here and mustn't be downloaded."""
    if not _is_hub_id(name):
        return bases.load(name).directory
    cached = _cached(name)
    if cached is not None:
        return bases.load(str(cached)).directory
    if download:
        return bases.load(name).directory
    raise BadInput(
        f"base '{name}': not a directory, and not in this machine's cache of the hub; download it where there is a network and "
        "give its directory, or set base_download: true in a recipe"
    )


def for_plan(recipe: Recipe, recipe_file: Path, root: Path) -> Planned:
    """The base's configuration for a plan. Nothing is downloaded. Raises BadInput where there is none to plan from."""
    name = recipe.base
    if not _is_hub_id(name):
        directory = bases.load(name).directory
        return Planned(read_config(directory), directory, str(directory))
    cached = _cached(name)
    if cached is not None:
        return Planned(read_config(cached), cached, str(cached))
    if recipe.base_config is None:
        raise BadInput(
            f"base '{name}': isn't on this machine, so there is nothing to plan from; give its config.json as base_config, or "
            "download the base where there is a network and give its directory"
        )
    for start in (recipe_file.absolute().parent, root, Path.cwd()):
        found = start / recipe.base_config
        found = found / "config.json" if found.is_dir() else found
        if found.is_file():
            return Planned(read_config(found.parent), None, str(found))
    raise BadInput(f"base_config: no file {recipe.base_config}, neither beside {recipe_file} nor in {root}")


def read_config(directory: Path) -> Any:
    """config.json as transformers' configuration. Raises BadInput where it is none that transformers knows."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, TypeError) as e:
        raise BadInput(
            f"{directory / 'config.json'}: not a configuration that transformers can read: {str(e).splitlines()[0]}"
        ) from None


def _is_hub_id(name: str) -> bool:
    path = Path(name).expanduser()
    return name != "nano" and not path.is_dir() and not name.startswith((".", "/", "~")) and name.count("/") == 1


def _cached(name: str) -> Path | None:
    """Where the hub's cache on this machine has the whole base; None where it doesn't. No network is used."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        found = Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError):
        return None
    return found if (found / "config.json").is_file() and list(found.glob("*.safetensors")) else None
