# SPDX-License-Identifier: GPL-2.0-or-later
"""What tests make dumps and kernels of, and whom they ask for a second opinion."""
