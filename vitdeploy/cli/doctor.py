"""`vitdeploy doctor`: what this machine offers, and what is wrong with it."""

from vitdeploy.cli.options import Json


def doctor(json: Json = False) -> None:
    """Show what runs here: processor, memory, engines, targets; and each trouble with its mend."""
    from vitdeploy.display_profile import print_examination
    from vitdeploy.doctor import examine

    print_examination(examine(), as_json=json)
