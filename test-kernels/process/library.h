/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the program has in its shared library. */

extern int library_counter;
extern __thread int library_number;

/* Calls itself until level is 0, then sleeps for ever. */
void library_descend(int level, long product);
