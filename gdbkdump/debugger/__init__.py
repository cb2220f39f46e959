# SPDX-License-Identifier: GPL-2.0-or-later
"""All that knows gdb: nobody imports this package, and only it imports gdb."""
