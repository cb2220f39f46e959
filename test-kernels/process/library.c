// SPDX-License-Identifier: GPL-2.0-or-later
/* A shared library with known variables and a known stack. */
#include <unistd.h>
#include "library.h"

int library_counter = 4711;
__thread int library_number;

void __attribute__((noinline)) library_descend(int level, long product)
{
	volatile long seen = product * level;

	library_number = level;
	if (level > 0)
		library_descend(level - 1, product + seen);
	for (;;)
		pause();
}
