"""Tests run in several processes at once, so each takes one thread."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported
