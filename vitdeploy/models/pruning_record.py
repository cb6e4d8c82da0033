"""`PruningRecord`: what was removed from an architecture, as its model folder records it.

Data only. How it is applied to a module is in `pruned`; what is removed is chosen by
`compress.prune`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vitdeploy.errors import ModelError

RECORD_KEY = "vitdeploy_pruning"
"""Key of the record in config.json."""
_KEYS = {"heads", "mlp", "blocks", "reparameterised", "history"}


@dataclass(frozen=True)
class PruningRecord:
    """What is left of an architecture; all paths are those of the whole architecture."""

    heads: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """By attention layer: the heads that were kept, in ascending order. Others kept all."""
    mlp: Mapping[str, int] = field(default_factory=dict)
    """By MLP: how many hidden channels were kept. Others kept all."""
    blocks: tuple[str, ...] = ()
    """Paths of whole blocks that were removed."""
    reparameterised: bool = False
    """Whether the weights are those of timm's re-parameterised form (FastViT)."""
    history: tuple[Mapping[str, Any], ...] = ()
    """What each pruning was asked for: criterion, shares, seed. For people; not read."""

    def below(self, prefix: str) -> "PruningRecord":
        """Return the record of the submodule whose paths begin with `prefix`, dot included."""
        return replace(
            self,
            heads={path.removeprefix(prefix): kept for path, kept in self.heads.items()},
            mlp={path.removeprefix(prefix): width for path, width in self.mlp.items()},
            blocks=tuple(path.removeprefix(prefix) for path in self.blocks),
        )

    def moved(self, old: str, new: str) -> "PruningRecord":
        """Return the record with the prefix `old` of every path replaced by `new`."""

        def renamed(path: str) -> str:
            return f"{new}{path.removeprefix(old)}" if path.startswith(old) else path

        return replace(
            self,
            heads={renamed(path): kept for path, kept in self.heads.items()},
            mlp={renamed(path): width for path, width in self.mlp.items()},
            blocks=tuple(renamed(path) for path in self.blocks),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the record for config.json."""
        return {
            "heads": {path: list(kept) for path, kept in self.heads.items()},
            "mlp": dict(self.mlp),
            "blocks": list(self.blocks),
            "reparameterised": self.reparameterised,
            "history": [dict(entry) for entry in self.history],
        }


def record_from_config(config: Mapping[str, Any]) -> PruningRecord | None:
    """Return the record in a parsed config.json, or None where the model was not pruned.

    Raises:
        ModelError: the record is damaged, or of a later version.
    """
    data = config.get(RECORD_KEY)
    if data is None:
        return None
    try:
        unknown = set(data) - _KEYS
        if unknown:
            raise ValueError(f"unknown keys {sorted(unknown)}")
        return PruningRecord(
            heads={str(k): tuple(int(head) for head in v) for k, v in data["heads"].items()},
            mlp={str(k): int(v) for k, v in data["mlp"].items()},
            blocks=tuple(str(path) for path in data["blocks"]),
            reparameterised=bool(data["reparameterised"]),
            history=tuple(dict(entry) for entry in data["history"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise ModelError(
            f"the record '{RECORD_KEY}' in config.json cannot be read ({e}). Allowed: "
            f"{', '.join(sorted(_KEYS))}. Prune the model again, or use the version of vitdeploy "
            "that wrote the folder."
        ) from e


def path_in_architecture(path: str, removed: Iterable[str]) -> str:
    """Return what `path`, in a model without the blocks `removed`, is in the whole architecture.

    Blocks are numbered within their container, so the ones behind a removed block moved up.
    """
    parts: list[str] = []
    for part in path.split("."):
        if part.isdecimal():
            before = ".".join(parts) + "."
            gone = {
                int(block.removeprefix(before))
                for block in removed
                if block.startswith(before) and block.removeprefix(before).isdecimal()
            }
            parts.append(str(_nth_not_in(int(part), gone)))
        else:
            parts.append(part)
    return ".".join(parts)


def _nth_not_in(count: int, gone: set[int]) -> int:
    """Return the `count`-th natural number, from 0, that is not in `gone`."""
    number = -1
    for _ in range(count + 1):
        number += 1
        while number in gone:
            number += 1
    return number
