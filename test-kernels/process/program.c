// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A position-independent program with a shared library, whose memory is in every place
 * where memory of a process can be. It writes what it knows of that to a file, in the
 * format of ../guest/workload.c, and sleeps in the library. Values hold no blanks.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "library.h"

enum { PAGE = 4096, PAGES = 16, HUGE = 2 << 20, DEPTH = 5 };

static const char marker[] = "gdbkdump-process-marker";
static FILE *facts;
static pthread_barrier_t all_ready;

struct point {
	int x, y;
	const char *name;
};
struct point corners[2] = { { 1, 2, "first" }, { 3, 4, "second" } };

static int check(int result, const char *what)
{
	if (result < 0)
		err(1, "%s", what);
	return result;
}

static char *map(size_t size, int flags, int fd)
{
	char *at = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0);

	if (at == MAP_FAILED)
		err(1, "mmap");
	return at;
}

/* Each page begins with its number, and has the marker. */
static void fill(char *at, int pages)
{
	for (int i = 0; i < pages; i++) {
		memcpy(at + i * PAGE, &i, sizeof(i));
		strcpy(at + i * PAGE + 64, marker);
	}
}

static char *anonymous(int pages)
{
	char *at = map(pages * PAGE, MAP_PRIVATE | MAP_ANONYMOUS, -1);

	fill(at, pages);
	return at;
}

static void map_anonymous(void)
{
	char *none = anonymous(PAGES), *swapped = anonymous(PAGES);
	char *room = map(2 * HUGE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	char *thp = (char *)(((uintptr_t)room + HUGE - 1) & -HUGE);
	char *huge = map(HUGE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1);

	check(mprotect(none, PAGES * PAGE, PROT_NONE), "mprotect");
	check(madvise(swapped, PAGES * PAGE, MADV_PAGEOUT), "MADV_PAGEOUT");
	check(madvise(thp, HUGE, MADV_HUGEPAGE), "MADV_HUGEPAGE");
	fill(thp, HUGE / PAGE);
	fill(huge, HUGE / PAGE);
	fprintf(facts, "none=%p swapped=%p thp=%p huge=%p ", (void *)none,
		(void *)swapped, (void *)thp, (void *)huge);
}

static int new_file(const char *path, int pages)
{
	int fd = check(open(path, O_RDWR | O_CREAT | O_TRUNC, 0600), path);
	char page[PAGE] = "";

	for (int i = 0; i < pages; i++) {
		memcpy(page, &i, sizeof(i));
		strcpy(page + 64, marker);
		check(write(fd, page, PAGE), path);
	}
	check(fsync(fd), path);
	return fd;
}

static char *map_file(const char *path, int pages, int mapped)
{
	int fd = new_file(path, pages);
	char *at = map(mapped * PAGE, MAP_PRIVATE, fd);

	close(fd);
	return at;
}

/* Of the file whose pages are dropped a page is private by then. */
static void map_files(void)
{
	int fd = new_file("/mnt/data/dropped", PAGES);
	char *dropped = map(PAGES * PAGE, MAP_PRIVATE, fd);
	char *cached = map_file("/mnt/data/cached", PAGES, PAGES);
	char *beyond = map_file("/mnt/data/beyond", 1, 4);
	char *deleted = map_file("/mnt/data/deleted", 1, 1);
	int memfd = check(memfd_create("us memfd", 0), "memfd_create");
	char *shared;

	check(ftruncate(memfd, PAGES * PAGE), "ftruncate");
	shared = map(PAGES * PAGE, MAP_SHARED, memfd);
	fill(shared, 2);
	dropped[5 * PAGE + 8] = 'x';
	check(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), "posix_fadvise");
	close(fd);
	check(unlink("/mnt/data/deleted"), "unlink");
	fprintf(facts, "dropped=%p cached=%p beyond=%p deleted=%p shared=%p ",
		(void *)dropped, (void *)cached, (void *)beyond, (void *)deleted,
		(void *)shared);
}

/* Sleeps with known values in registers of SSE and x87. */
static void *hold_floats(void *unused)
{
	static const uint64_t known[2] __attribute__((aligned(16))) = {
		0x6b64756d70000010, 0x6b64756d70000011,
	};

	prctl(PR_SET_NAME, "us-float");
	library_number = 77;
	pthread_barrier_wait(&all_ready);
	for (;;)
		asm volatile("movdqa %1, %%xmm5\n"
			     "fninit\n"
			     "fldpi\n"
			     "syscall\n"
			     : : "a"(SYS_pause), "m"(known)
			     : "rcx", "r11", "xmm5", "memory");
	return unused;
}

static void start_thread(void *(*function)(void *))
{
	pthread_t thread;

	if (pthread_create(&thread, NULL, function, NULL))
		errx(1, "pthread_create");
}

int main(int argc, char **argv)
{
	if (argc != 2)
		errx(1, "usage: program FACTS-FILE");
	facts = fopen(argv[1], "w");
	if (!facts)
		err(1, "%s", argv[1]);
	prctl(PR_SET_NAME, "us-main");
	pthread_barrier_init(&all_ready, NULL, 2);
	start_thread(hold_floats);
	fprintf(facts, "us-main pid=%d tid=%d marker=%s ", getpid(), getpid(), marker);
	map_files();
	map_anonymous();
	fprintf(facts, "main=%p corners=%p descend=%p depth=%d\n", (void *)main,
		(void *)corners, (void *)library_descend, DEPTH);
	pthread_barrier_wait(&all_ready);
	fclose(facts);
	library_counter++;
	library_descend(DEPTH, 3);
	return 0;
}
