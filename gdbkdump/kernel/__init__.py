# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel model: what a structure means; every version difference lives here."""
