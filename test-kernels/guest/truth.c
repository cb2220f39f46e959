// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Write what the guest sees of itself to a raw disk, then crash it at once.
 *
 * The stream is a row of records: "PATH SIZE\n", SIZE bytes, "\n". A symbolic link
 * is recorded with its target and "@" before the path; a file that cannot be read is
 * recorded with the error number, negative, for its size and no bytes. A record of
 * the path "end" closes the stream. In C, because a shell loop needs minutes for
 * 12,000 tasks on an emulated CPU.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

enum { PIECE = 65536 };

static FILE *out;
static char *buffer;
static size_t capacity = 1 << 20;

static void record(const char *path, const void *data, size_t size)
{
	fprintf(out, "%s %zu\n", path, size);
	fwrite(data, 1, size, out);
	fputc('\n', out);
}

static void record_error(const char *path)
{
	fprintf(out, "%s %d\n\n", path, -errno);
}

/*
 * Read to the end of file; -1 with errno set if the first read fails. In pieces:
 * sysctl files allocate as much as they are asked for.
 */
static ssize_t read_all(int fd)
{
	size_t size = 0;

	for (;;) {
		size_t left = capacity - size;
		ssize_t got = read(fd, buffer + size, left < PIECE ? left : PIECE);
		if (got <= 0)
			return size == 0 ? got : (ssize_t)size;
		size += got;
		if (size == capacity)
			buffer = realloc(buffer, capacity *= 2);
	}
}

static void save_file(const char *path)
{
	int fd = open(path, O_RDONLY | O_NONBLOCK);
	ssize_t size = fd < 0 ? -1 : read_all(fd);

	if (size < 0)
		record_error(path);
	else
		record(path, buffer, size);
	if (fd >= 0)
		close(fd);
}

/* /dev/kmsg gives one record a read, and EAGAIN after the last. */
static void save_kmsg(void)
{
	int fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK);
	size_t size = 0;

	for (;;) {
		ssize_t got = read(fd, buffer + size, capacity - size);
		if (got < 0 && errno == EPIPE)
			continue;
		if (got <= 0)
			break;
		size += got;
		if (capacity - size < 16384)
			buffer = realloc(buffer, capacity *= 2);
	}
	record("/dev/kmsg", buffer, size);
	close(fd);
}

static void save_matching(const char *pattern)
{
	glob_t found;

	if (glob(pattern, 0, NULL, &found) == 0)
		for (size_t i = 0; i < found.gl_pathc; i++)
			save_file(found.gl_pathv[i]);
	globfree(&found);
}

static void save_link(const char *path)
{
	char target[PATH_MAX];
	ssize_t size = readlink(path, target, sizeof(target));

	if (size < 0)
		return;
	fputc('@', out);
	record(path, target, size);
}

static void save_links(const char *directory)
{
	DIR *links = opendir(directory);
	struct dirent *entry;

	while (links && (entry = readdir(links))) {
		char path[PATH_MAX];
		if (entry->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "%s/%s", directory, entry->d_name);
		save_link(path);
	}
	if (links)
		closedir(links);
}

static const char *const thread_files[] = {
	"stat", "status", "comm", "wchan", "stack", "syscall", "schedstat", NULL,
};
static const char *const process_files[] = {
	"cmdline", "environ", "cgroup", "maps", "statm", NULL,
};

static void save_threads(const char *pid)
{
	char path[PATH_MAX];
	snprintf(path, sizeof(path), "/proc/%s/task", pid);
	DIR *threads = opendir(path);
	struct dirent *entry;

	while (threads && (entry = readdir(threads))) {
		if (entry->d_name[0] == '.')
			continue;
		for (int i = 0; thread_files[i]; i++) {
			snprintf(path, sizeof(path), "/proc/%s/task/%s/%s", pid,
				 entry->d_name, thread_files[i]);
			save_file(path);
		}
	}
	if (threads)
		closedir(threads);
}

static void save_process(const char *pid)
{
	static const char *const links[] = { "exe", "cwd", "root", NULL };
	char path[PATH_MAX];

	save_threads(pid);
	for (int i = 0; process_files[i]; i++) {
		snprintf(path, sizeof(path), "/proc/%s/%s", pid, process_files[i]);
		save_file(path);
	}
	for (int i = 0; links[i]; i++) {
		snprintf(path, sizeof(path), "/proc/%s/%s", pid, links[i]);
		save_link(path);
	}
	snprintf(path, sizeof(path), "/proc/%s/fd", pid);
	save_links(path);
	snprintf(path, sizeof(path), "/proc/%s/fdinfo/*", pid);
	save_matching(path);
	snprintf(path, sizeof(path), "/proc/%s/ns", pid);
	save_links(path);
}

static void save_processes(void)
{
	DIR *proc = opendir("/proc");
	struct dirent *entry;

	while (proc && (entry = readdir(proc)))
		if (entry->d_name[0] >= '0' && entry->d_name[0] <= '9')
			save_process(entry->d_name);
	closedir(proc);
}

static void save_clock(const char *name)
{
	static const clockid_t ids[] = { CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME };
	char text[128];
	int size = 0;

	for (int i = 0; i < 3; i++) {
		struct timespec now;
		clock_gettime(ids[i], &now);
		size += snprintf(text + size, sizeof(text) - size, "%lld.%09ld ",
				 (long long)now.tv_sec, now.tv_nsec);
	}
	record(name, text, size);
}

/* What does not change, and what is long, comes first. */
static const char *const first_files[] = {
	"/proc/version", "/proc/cmdline", "/proc/kallsyms", "/proc/modules",
	"/proc/iomem", "/proc/ioports", "/proc/filesystems", "/proc/devices",
	"/proc/misc", "/proc/partitions", "/proc/swaps", "/proc/cgroups",
	"/proc/cpuinfo", "/proc/consoles", "/proc/bus/pci/devices",
	"/proc/bus/input/devices", "/proc/self/mountinfo", "/proc/self/mounts",
	"/proc/sys/kernel/tainted", "/proc/sys/kernel/pid_max",
	"/proc/sys/kernel/threads-max", "/proc/sys/kernel/hostname",
	"/proc/sys/kernel/osrelease", "/proc/sys/kernel/randomize_va_space",
	"/proc/sys/kernel/random/boot_id", "/proc/sys/kernel/panic",
	"/sys/kernel/notes", "/sys/kernel/vmcoreinfo",
	"/sys/kernel/kexec_crash_size", "/sys/devices/system/cpu/possible",
	"/sys/devices/system/cpu/present", "/sys/devices/system/cpu/online",
	"/sys/module/*/sections/*", "/sys/module/*/sections/.[!.]*",
	"/sys/module/*/notes/.[!.]*", "/sys/module/*/coresize",
	"/sys/module/*/refcnt", "/sys/module/*/taint",
	"/sys/class/net/*/address", "/sys/class/net/*/mtu",
	"/sys/class/net/*/ifindex", "/sys/class/net/*/flags",
	"/sys/block/*/dev", "/sys/block/*/size",
	"/sys/bus/pci/devices/*/vendor", "/sys/bus/pci/devices/*/device",
	"/sys/bus/pci/devices/*/class", "/proc/net/tcp", "/proc/net/tcp6",
	"/proc/net/udp", "/proc/net/udp6", "/proc/net/unix", "/proc/net/netlink",
	"/proc/net/raw", "/proc/net/packet", "/proc/net/dev", "/proc/net/route",
	"/proc/net/sockstat", "/proc/sysvipc/shm", "/proc/sysvipc/sem",
	"/proc/sysvipc/msg", "/proc/locks", "/proc/vmallocinfo", NULL,
};

/* What moves while we write, as close to the crash as can be. */
static const char *const last_files[] = {
	"/proc/slabinfo", "/proc/meminfo", "/proc/vmstat", "/proc/zoneinfo",
	"/proc/buddyinfo", "/proc/pagetypeinfo", "/proc/interrupts", "/proc/softirqs",
	"/proc/stat", "/proc/timer_list", "/proc/loadavg", "/proc/uptime", NULL,
};

static void save_patterns(const char *const *patterns)
{
	for (; *patterns; patterns++) {
		if (strchr(*patterns, '*'))
			save_matching(*patterns);
		else
			save_file(*patterns);
	}
}

static void write_all(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		warn("%s", path);
	close(fd);
}

int main(int argc, char **argv)
{
	if (argc != 3)
		errx(1, "usage: truth DISK WORKLOAD-FILE");
	prctl(PR_SET_NAME, "wl-crash");
	buffer = malloc(capacity);
	out = fopen(argv[1], "r+");
	if (!out || !buffer)
		err(1, "%s", argv[1]);
	setvbuf(out, NULL, _IOFBF, 1 << 20);

	save_clock("clock-start");
	save_file(argv[2]);
	save_patterns(first_files);
	save_processes();
	save_patterns(last_files);
	save_kmsg();
	save_clock("clock-end");
	record("end", "", 0);
	if (fflush(out) || fsync(fileno(out)))
		err(1, "%s", argv[1]);
	write_all("/dev/console", "test-kernels: truth written\n");
	write_all("/proc/sysrq-trigger", "c");
	return 1;
}
