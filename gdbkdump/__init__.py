# SPDX-License-Identifier: GPL-2.0-or-later
"""Stock gdb as a Linux kernel crash dump debugger."""

__version__ = "0.1.0"
