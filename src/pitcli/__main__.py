"""`python -m pitcli` is `pit`."""

import sys

from pitcli.cli import main

sys.exit(main())
