# SPDX-License-Identifier: GPL-2.0-or-later
"""What needs gdb around it runs by tests/run_in_gdb.py, all else anywhere."""

import sys

# Not by name: the folder tests/gdb looks like a module "gdb" too.
collect_ignore = [] if "_gdb" in sys.modules else ["test_boot.py", "test_frames.py"]
