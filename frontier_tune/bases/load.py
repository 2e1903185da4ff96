"""Find a base: the nano base that ships, a directory, or a hub id. Its weights are safetensors or it is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frontier_tune.contracts import BadInput

NANO = Path(__file__).parent / "built" / "nano"
_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model")


@dataclass(frozen=True)
class Base:
    """A base on disk. ``config`` is its config.json."""

    name: str
    directory: Path
    config: dict[str, Any]

    @property
    def model_type(self) -> str:
        return str(self.config.get("model_type", ""))

    @property
    def datasheets(self) -> list[Path]:
        """Data sheets of what it was trained on, where they came with it."""
        return sorted((self.directory / "datasheets").glob("*.json"))


def load(name: str) -> Base:
    """The base called ``name``: 'nano', a directory, or a hub id (the only case that reaches a network).

    Raises BadInput where there is no such base, it is incomplete, or its weights are pickled.
    """
    if name == "nano":
        if not (NANO / "config.json").is_file():
            raise BadInput(f"base 'nano': {NANO} holds no model; build it with `make base`")
        return _read(name, NANO)
    directory = Path(name).expanduser()
    if directory.is_dir():
        return _read(name, directory)
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") != 1
    if looks_like_path:
        raise BadInput(f"base '{name}': no such directory (and no hub id, which reads owner/name)")
    return _read(name, _from_hub(name))


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(_FILES)))
    except (RepositoryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as e:
        raise BadInput(
            f"base '{name}': not a directory, and the hub does not give it ({type(e).__name__}: {str(e).splitlines()[0]}). "
            "Download it where there is a network and give its directory."
        ) from None


def _read(name: str, directory: Path) -> Base:
    path = directory / "config.json"
    if not path.is_file():
        raise BadInput(f"base '{name}': {directory} has no config.json; it is no transformers checkpoint")
    try:
        config = json.loads(path.read_text())
    except json.JSONDecodeError as e:
        raise BadInput(f"base '{name}': {path} is not JSON: {e}") from None
    if not list(directory.glob("*.safetensors")):
        pickled = [p.name for p in (*directory.glob("*.bin"), *directory.glob("*.pt"))]
        found = f"it has {', '.join(pickled)}: convert to safetensors" if pickled else "it has no weights"
        raise BadInput(f"base '{name}': {directory} holds no safetensors; {found}")
    return Base(name, directory.resolve(), config)
