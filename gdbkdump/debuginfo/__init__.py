# SPDX-License-Identifier: GPL-2.0-or-later
"""Types and symbols of the crashed kernel: one port, several sources."""
