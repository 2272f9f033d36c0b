"""What a job is asked to do: one frozen, closed and bounded model per kind of job.

Both programs read these (the web process to check and to build forms, the workers to act), so
they are plain Python and pydantic; they know no Django and no torch. A recipe says what it
*produces* in `produces`; `output` is only the name that a produced model or dataset gets.
"""

from registry.recipes.adapting import ExtractLora
from registry.recipes.coding import Cluster, Code
from registry.recipes.compress import CompressRecipe, CompressStep, ExportOnnx, QuantizeDynamic
from registry.recipes.diffing import Diff, DiffRecipe
from registry.recipes.distilling import Distill, LowRank
from registry.recipes.exporting import FILES as EXPORTED_FILES
from registry.recipes.exporting import RUN_CODE, Export, ExportRecipe
from registry.recipes.fields import (
    BASE,
    OTHER,
    REFERENCE_PATTERN,
    VARIANT_PATTERN,
    Produces,
    Queue,
    Reference,
    kind_of,
    parse_reference,
)
from registry.recipes.fusing import Fuse
from registry.recipes.merging import Merge
from registry.recipes.parse import RECIPES, Recipe, parse_recipe, recipe_schema
from registry.recipes.profiling import Profile, ProfileRecipe
from registry.recipes.pruning import (
    Budget,
    FineTune,
    PruneMagnitude,
    PruneMovement,
    PruneStructured,
)
from registry.recipes.quantization import (
    FixedPoint,
    PackLinear,
    QuantizeStatic,
    QuantizeWeights,
    TrainQuantized,
    no_int4,
)
from registry.recipes.searching import MAX_VARIANTS, Search, SearchRecipe
from registry.recipes.train import (
    MAX_SAMPLES_SEEN,
    Architecture,
    DigitsCnn,
    TextClassifier,
    Train,
    TrainRecipe,
    count_parameters,
)
from registry.recipes.tuning import MAX_BATCH_SIZE, MAX_THREADS, Tune, TuneRecipe
from registry.recipes.use import Evaluate, EvaluateRecipe, InferRecipe, Predict

__all__ = [
    "BASE",
    "EXPORTED_FILES",
    "MAX_BATCH_SIZE",
    "MAX_SAMPLES_SEEN",
    "MAX_THREADS",
    "MAX_VARIANTS",
    "OTHER",
    "RECIPES",
    "REFERENCE_PATTERN",
    "RUN_CODE",
    "VARIANT_PATTERN",
    "Architecture",
    "Budget",
    "Cluster",
    "Code",
    "CompressRecipe",
    "CompressStep",
    "Diff",
    "DiffRecipe",
    "DigitsCnn",
    "Distill",
    "Evaluate",
    "EvaluateRecipe",
    "Export",
    "ExportOnnx",
    "ExportRecipe",
    "ExtractLora",
    "FineTune",
    "FixedPoint",
    "Fuse",
    "InferRecipe",
    "LowRank",
    "Merge",
    "PackLinear",
    "Predict",
    "Produces",
    "Profile",
    "ProfileRecipe",
    "PruneMagnitude",
    "PruneMovement",
    "PruneStructured",
    "QuantizeDynamic",
    "QuantizeStatic",
    "QuantizeWeights",
    "Queue",
    "Recipe",
    "Reference",
    "Search",
    "SearchRecipe",
    "TextClassifier",
    "Train",
    "TrainQuantized",
    "TrainRecipe",
    "Tune",
    "TuneRecipe",
    "count_parameters",
    "kind_of",
    "no_int4",
    "parse_recipe",
    "parse_reference",
    "recipe_schema",
]
