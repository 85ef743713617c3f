"""The command's earlier name: `python -m mela_jax.report` is the one to write."""

import sys

if __name__ == "__main__":
    from mela_jax.report.__main__ import command

    sys.exit(command())
