# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel stacks from the dump alone: which there are, and what is on them."""
