# SPDX-License-Identifier: GPL-2.0-or-later
"""What commands return, and how it looks as text or JSON; knows nothing of kernels."""
