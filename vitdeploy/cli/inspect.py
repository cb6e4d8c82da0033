"""`vitdeploy inspect`, `models` and `doctor`: what there is, with no work done."""

from vitdeploy.cli.options import Checkpoint, ImageSize, Json, Model, Outputs, RandomWeights


def inspect(
    model: Model,
    checkpoint: Checkpoint = None,
    random_weights: RandomWeights = False,
    image_size: ImageSize = None,
    outputs: Outputs = None,
    json: Json = False,
) -> None:
    """Show parameters, GMACs, tokens, preprocessing, attention sites and parts of MODEL."""
    from vitdeploy.display import print_description
    from vitdeploy.models import describe, load
    from vitdeploy.pipeline import load_options
    from vitdeploy.recipe import recipe_from_dict

    options = {
        "source": model,
        "checkpoint": str(checkpoint) if checkpoint else None,
        "random_weights": random_weights,
        "image_size": image_size,
        "outputs": outputs,
    }
    recipe = recipe_from_dict({"model": options}, "options")
    print_description(describe(load(load_options(recipe))), as_json=json)


def models(json: Json = False) -> None:
    """List the aliases and families."""
    from vitdeploy.display import print_aliases
    from vitdeploy.models import aliases

    print_aliases(aliases(), as_json=json)


def doctor(json: Json = False) -> None:
    """Show what this machine offers: processor, versions, targets."""
    from vitdeploy.allocator import describe_allocator
    from vitdeploy.display import print_environment
    from vitdeploy.environment import describe_environment
    from vitdeploy.targets import describe_targets

    allocator = {"allocator": describe_allocator()}
    print_environment({**describe_environment(), **allocator, **describe_targets()}, as_json=json)
