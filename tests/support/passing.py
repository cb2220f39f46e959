# SPDX-License-Identifier: GPL-2.0-or-later
"""What may change in a guest between its own record of itself and the dump."""

# Kernel threads that come and go by themselves, as their names begin.
PASSING = ("kworker/", "ext4lazyinit")
