# SPDX-License-Identifier: GPL-2.0-or-later
"""The files that stock gdb is given in place of what it cannot know of a kernel."""
