"""The version, alone in its module so that the build and `--version` import nothing else."""

__version__ = "0.1.0"
