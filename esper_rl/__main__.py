"""``python -m esper_rl`` is the command ``esper-rl``."""

import sys

from esper_rl.cli import main

sys.exit(main())
