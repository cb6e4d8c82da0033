"""Exact folds: rewrites of weights that leave the FP32 function as it was, by name.

Each module has `find(model)`, which lists its sites, `applies(site)`, which returns None or the
reason why the fold would not be exact there, and `apply_(model, site, ...)`, which edits in place
and raises ValueError with that reason. `layerscale` runs in `graph.canonical` already.

All expect a canonical graph (`canonicalise_`). Sites stay valid while other folds edit weights and
add biases; after nodes are inserted or split (`rotation` with inserts, `packed_qkv`), find again.
"""

from types import ModuleType

from vitdeploy.graph.folds import (
    depthwise_scale,
    key_shift,
    layernorm_scale,
    layerscale,
    query_key_scale,
    rotation,
    value_scale,
)

FOLDS: dict[str, ModuleType] = {
    "layernorm_scale": layernorm_scale,
    "rotation": rotation,
    "query_key_scale": query_key_scale,
    "key_shift": key_shift,
    "value_scale": value_scale,
    "layerscale": layerscale,
    "depthwise_scale": depthwise_scale,
}
"""The folds F1 to F7 by module name."""
