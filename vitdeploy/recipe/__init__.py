"""The recipe: everything one run was asked to do, and nothing else.

Data only, so that reading a recipe loads no torch. All mistakes of a recipe are
reported at once. What the words mean is in the field descriptions; the JSON schema
generated from them is `recipes/recipe.schema.json`.

`names` has precisions and targets, `sections` what surrounds the work, `compression` one section
for each step that makes a model smaller, `distillation` the one that trains, `whole` the recipe
and its reading and writing.
"""

from vitdeploy.recipe.compression import (
    Int4Choices,
    Int4Section,
    Int8Choices,
    Int8Section,
    MergeTokensSection,
    PruneSection,
)
from vitdeploy.recipe.distillation import (
    AugmentSection,
    DistillSection,
    StudentSection,
    TeacherSection,
    TrainingSection,
)
from vitdeploy.recipe.names import (
    INT4_OPSET,
    INT4_PRECISIONS,
    PRECISIONS,
    TARGET_NAMES,
    TARGET_SYNONYMS,
    AttentionForm,
    Precision,
    TargetName,
    canonical_precision,
    canonical_target,
)
from vitdeploy.recipe.sections import (
    CalibrationSection,
    EvaluationSection,
    ExportSection,
    GateSection,
    MeasureSection,
    ModelSection,
    PreprocessSection,
    is_onnx_source,
)
from vitdeploy.recipe.whole import (
    EngineChoice,
    Recipe,
    recipe_from_dict,
    recipe_from_yaml,
    recipe_sha256,
    yaml_from_recipe,
)

__all__ = [
    "INT4_OPSET",
    "INT4_PRECISIONS",
    "PRECISIONS",
    "TARGET_NAMES",
    "TARGET_SYNONYMS",
    "AttentionForm",
    "AugmentSection",
    "CalibrationSection",
    "DistillSection",
    "EngineChoice",
    "EvaluationSection",
    "ExportSection",
    "GateSection",
    "Int4Choices",
    "Int4Section",
    "Int8Choices",
    "Int8Section",
    "MeasureSection",
    "MergeTokensSection",
    "ModelSection",
    "Precision",
    "PreprocessSection",
    "PruneSection",
    "Recipe",
    "StudentSection",
    "TargetName",
    "TeacherSection",
    "TrainingSection",
    "canonical_precision",
    "canonical_target",
    "is_onnx_source",
    "recipe_from_dict",
    "recipe_from_yaml",
    "recipe_sha256",
    "yaml_from_recipe",
]
