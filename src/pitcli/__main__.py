"""Runs `pit` as `python -m pitcli`."""

import sys

from pitcli.cli import main

sys.exit(main())
