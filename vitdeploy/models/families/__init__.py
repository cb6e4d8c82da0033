"""One module per model family, each satisfying `vitdeploy.models.Family`; nothing else here.

The dictionary of them is `vitdeploy.models.FAMILIES`.
"""
