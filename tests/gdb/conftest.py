# SPDX-License-Identifier: GPL-2.0-or-later
"""These tests run inside gdb: see tests/run_in_gdb.py."""

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("gdb") else ["test_*.py"]
