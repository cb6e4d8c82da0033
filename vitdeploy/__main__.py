"""`python -m vitdeploy`: the command line."""

from vitdeploy.cli import main

if __name__ == "__main__":
    main()
