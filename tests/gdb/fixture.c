/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Types of every kind that kernel structures are made of, and their true layout. */
#include <stddef.h>
#include <stdint.h>

enum colour { RED = 1, GREEN = 5, BLUE };
enum sign { MINUS = -1, NONE, PLUS };

struct list_head {
	struct list_head *next, *prev;
};

typedef struct {
	int counter;
} atomic_t;

union word {
	uint32_t whole;
	struct {
		uint16_t low, high;
	};
};

struct sample {
	char name[16];
	const volatile unsigned long *const pointer;
	unsigned int flag : 1, mode : 3, : 4, level : 7;
	int delta : 5;
	struct {
		union {
			long inner;
			void *other;
		};
		short last;
	};
	atomic_t usage;
	union word words[3];
	struct list_head list;
	enum colour colour;
	enum sign sign;
	_Bool ready;
	int (*callback)(struct sample *, int, ...);
	unsigned char tail[];
};

struct sample sample = { .name = "fixture" };

#define OFFSET(member) { #member, offsetof(struct sample, member) }

/* What the compiler says, for the tests to compare with. */
struct {
	const char *name;
	unsigned long value;
} truth[] = {
	{ "sizeof", sizeof(struct sample) }, OFFSET(name), OFFSET(pointer),
	OFFSET(inner), OFFSET(other), OFFSET(last), OFFSET(usage.counter),
	OFFSET(words[2].high), OFFSET(list.prev), OFFSET(colour), OFFSET(sign),
	OFFSET(ready), OFFSET(callback), OFFSET(tail), { 0, 0 },
};

int main(void)
{
	union word word = { .whole = 7 };
	return sample.delta + word.low;
}
