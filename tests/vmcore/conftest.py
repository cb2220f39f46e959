# SPDX-License-Identifier: GPL-2.0-or-later
"""What needs gdb around it runs by tests/run_in_gdb.py, all else anywhere."""

import importlib.util

collect_ignore = [] if importlib.util.find_spec("gdb") else ["test_boot.py"]
