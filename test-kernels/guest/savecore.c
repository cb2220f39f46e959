// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Copy /proc/vmcore to a fresh disk, leaving pages of zeros out: the disk is a
 * sparse file of the host, so they become holes there. Mapping the dump is several
 * times faster than read(), which maps the old memory page by page.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PAGE = 4096, WINDOW = 16 << 20 };

static int is_zero(const char *page)
{
	return page[0] == 0 && memcmp(page, page + 1, PAGE - 1) == 0;
}

static void write_run(int disk, const char *data, size_t size, off_t at)
{
	while (size > 0) {
		ssize_t done = pwrite(disk, data, size, at);
		if (done <= 0)
			err(1, "write at %lld", (long long)at);
		data += done, at += done, size -= done;
	}
}

/* Write each maximal run of pages that hold something. */
static void copy_window(int disk, const char *window, size_t size, off_t at)
{
	size_t start = 0, here = 0;

	for (; here < size; here += PAGE) {
		if (!is_zero(window + here))
			continue;
		write_run(disk, window + start, here - start, at + start);
		start = here + PAGE;
	}
	if (start < size)
		write_run(disk, window + start, size - start, at + start);
}

int main(int argc, char **argv)
{
	if (argc != 3)
		errx(1, "usage: savecore VMCORE DISK");
	int vmcore = open(argv[1], O_RDONLY), disk = open(argv[2], O_WRONLY);
	struct stat status;
	if (vmcore < 0 || disk < 0 || fstat(vmcore, &status))
		err(1, "open %s, %s", argv[1], argv[2]);

	for (off_t at = 0; at < status.st_size; at += WINDOW) {
		off_t left = status.st_size - at;
		size_t size = left < WINDOW ? left : WINDOW;
		char *window = mmap(NULL, size, PROT_READ, MAP_SHARED, vmcore, at);
		if (window == MAP_FAILED)
			err(1, "mmap at %lld", (long long)at);
		copy_window(disk, window, size, at);
		munmap(window, size);
	}
	if (fsync(disk))
		err(1, "fsync");
	printf("test-kernels: vmcore size %lld\n", (long long)status.st_size);
	return 0;
}
