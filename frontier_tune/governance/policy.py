"""The workspace's policy file, ``policy.yaml``: what a run may do, however its recipe is written. Nothing without the file.

real_writes: # tools that may write to production in a run, by environment
  envs/crm_cleanup: [archive]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from frontier_tune.contracts import BadInput
from frontier_tune.recipe import strict_yaml

FILE = "policy.yaml"


class Policy(BaseModel):
    """``real_writes``: tools with the effect ``real`` that a run may use, by the environment's path as recipes name it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    real_writes: dict[str, list[str]] = {}

    def require_real_writes(self, environment: str, tools: Sequence[str]) -> None:
        """Raises BadInput where a run of ``environment`` may not use one of ``tools``."""
        refused = [name for name in tools if name not in self.real_writes.get(environment, ())]
        if refused:
            raise BadInput(
                f"environment.allow_real_writes: {FILE} does not allow {environment} to write to production by "
                f"{', '.join(refused)}; whoever answers for it adds real_writes: {{{environment}: [{', '.join(refused)}]}} there"
            )


def load(root: Path) -> Policy:
    """The policy of the workspace ``root``; one that allows nothing where there is no file. Raises BadInput for a wrong file."""
    path = root / FILE
    if not path.is_file():
        return Policy()
    try:
        data = strict_yaml.read(path.read_text(encoding="utf-8"))
        return Policy.model_validate({} if data is None else data)
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise BadInput(f"{path}: not valid YAML: {e}") from None
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise BadInput(f"{path}: {where}: {first['msg']}; known: {', '.join(Policy.model_fields)}") from None
