"""Runs `pit` as `python -m pitcli`."""

import sys

from pitcli.cli import entry

sys.exit(entry())
