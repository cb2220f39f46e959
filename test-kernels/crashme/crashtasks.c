// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The tasks of a guest that crashes in crashme: some sleep in it, some loop in user
 * space, and cm-crash waits for the truth to be written and then crashes the kernel.
 * All loops and all system calls that end in crashme have registers that ../crash.py
 * knows. What it cannot know is written to a file, a line for each task:
 * "ROLE pid=N tid=N KEY=VALUE...".
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <unistd.h>

/*
 * write_known(): write(2) with known values in all registers that a system call
 * leaves alone and that are not its arguments.
 * spin_known(): one instruction, for ever, with known values in all but the stack
 * pointer and the flags.
 */
asm(".text\n"
    ".macro load_registers\n"
    "	movabs $0x6b64756d70000001, %rbx\n"
    "	movabs $0x6b64756d70000002, %rbp\n"
    "	movabs $0x6b64756d70000003, %r8\n"
    "	movabs $0x6b64756d70000004, %r9\n"
    "	movabs $0x6b64756d70000005, %r10\n"
    "	movabs $0x6b64756d70000006, %r12\n"
    "	movabs $0x6b64756d70000007, %r13\n"
    "	movabs $0x6b64756d70000008, %r14\n"
    "	movabs $0x6b64756d70000009, %r15\n"
    ".endm\n"
    "write_known:\n"
    "	push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
    "	load_registers\n"
    "	mov $1, %eax\n"
    "	syscall\n"
    "write_known_end:\n"
    "	pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n"
    "	ret\n"
    "spin_known:\n"
    "	load_registers\n"
    "	movabs $0x6b64756d7000000a, %rax\n"
    "	movabs $0x6b64756d7000000b, %rcx\n"
    "	movabs $0x6b64756d7000000c, %rdx\n"
    "	movabs $0x6b64756d7000000d, %rsi\n"
    "	movabs $0x6b64756d7000000e, %rdi\n"
    "	movabs $0x6b64756d7000000f, %r11\n"
    "spin_known_loop:\n"
    "	jmp spin_known_loop\n");

extern ssize_t write_known(int fd, const char *text, size_t size);
extern void spin_known(void) __attribute__((noreturn));
extern const char write_known_end[], spin_known_loop[];

static FILE *facts;

static int check(int result, const char *what)
{
	if (result < 0)
		err(1, "%s", what);
	return result;
}

static void pin_to_cpu(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	check(sched_setaffinity(0, sizeof(set), &set), "sched_setaffinity");
}

static void write_text(const char *path, const char *text)
{
	int fd = check(open(path, O_WRONLY), path);

	check(write(fd, text, strlen(text)), path);
	close(fd);
}

static void write_to_crashme(const char *path, const char *word)
{
	write_known(check(open(path, O_WRONLY), path), word, strlen(word));
}

/* The child goes on as a task of that name, the parent gets its pid. */
static pid_t start_task(const char *comm)
{
	pid_t pid = check(fork(), "fork");

	if (pid == 0) {
		fclose(facts);
		prctl(PR_SET_NAME, comm);
	}
	return pid;
}

static char state_of(pid_t pid)
{
	char path[64], line[512] = "";
	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	FILE *file = fopen(path, "r");

	if (!file || !fgets(line, sizeof(line), file))
		err(1, "%s", path);
	fclose(file);
	return strrchr(line, ')')[2];
}

static void wait_for_state(pid_t pid, char state)
{
	for (int tries = 0; state_of(pid) != state; tries++) {
		if (tries > 500)
			errx(1, "task %d never gets into state %c", pid, state);
		usleep(20000);
	}
}

/* ---- tasks that sleep in crashme, or loop ----------------------------------------- */

static void start_sleeper(const char *comm, const char *word, char state)
{
	pid_t pid = start_task(comm);

	if (pid == 0) {
		write_to_crashme("/dev/crashme", word);
		errx(1, "%s: did not sleep", comm);
	}
	wait_for_state(pid, state);
	fprintf(facts, "%s pid=%d tid=%d state=%c rip=%p word=%p size=%zu\n", comm, pid,
		pid, state, (void *)write_known_end, (void *)word, strlen(word));
}

static void start_spinner(int cpu)
{
	char comm[] = "cm-spin-N";
	comm[sizeof(comm) - 2] = '0' + cpu;
	pid_t pid = start_task(comm);

	if (pid == 0) {
		pin_to_cpu(cpu);
		spin_known();
	}
	fprintf(facts, "%s pid=%d tid=%d state=R cpu=%d rip=%p\n", comm, pid, pid, cpu,
		(void *)spin_known_loop);
}

/* ---- the task that crashes the kernel ---------------------------------------------- */

static void write_the_word(const char *kind)
{
	write_to_crashme("/dev/crashme", kind);
}

/* The interrupt is to come while we are in user space. */
static void write_and_spin(const char *kind)
{
	write_to_crashme("/dev/crashme", kind);
	spin_known();
}

/* Not the file that is mounted over it. */
static void trigger_sysrq(const char *kind)
{
	(void)kind;
	check(umount2("/proc/sysrq-trigger", MNT_DETACH), "umount");
	write_to_crashme("/proc/sysrq-trigger", "c");
}

static void be_locked_up(const char *kind)
{
	write_text("/proc/sys/kernel/softlockup_panic", "1");
	write_text("/proc/sys/kernel/watchdog_thresh", "3");
	write_to_crashme("/dev/crashme", kind);
}

/* The tasks that wait for the mutex have done so for longer than that. */
static void look_for_hung_tasks(const char *kind)
{
	(void)kind;
	write_text("/proc/sys/kernel/hung_task_panic", "1");
	write_text("/proc/sys/kernel/hung_task_timeout_secs", "3");
	pause();
}

static void wait_for_nmi(const char *kind)
{
	write_text("/proc/sys/kernel/unknown_nmi_panic", "1");
	write_text("/dev/console", "test-kernels: waiting for an NMI\n");
	if (strcmp(kind, "nmi-idle") == 0)
		pause();
	spin_known();
}

static void wait_for_mce(const char *kind)
{
	write_text("/dev/console", "test-kernels: waiting for a machine check\n");
	write_to_crashme("/dev/crashme", kind);
}

/* Else the registers that are saved are those before the double fault. */
static void double_fault(const char *kind)
{
	write_text("/sys/module/kernel/parameters/crash_kexec_post_notifiers", "Y");
	write_to_crashme("/dev/crashme", kind);
}

static void write_null(const char *kind)
{
	(void)kind;
	write_to_crashme("/dev/crashme", "null");
}

static const struct {
	const char *kind;
	void (*crash)(const char *kind);
} crashes[] = {
	{ "null", write_the_word },	 { "gpf", write_the_word },
	{ "bug", write_the_word },	 { "overflow", write_the_word },
	{ "hardirq", write_the_word },	 { "softirq", write_and_spin },
	{ "lockup", be_locked_up },	 { "hung", look_for_hung_tasks },
	{ "nmi-idle", wait_for_nmi },	 { "nmi-user", wait_for_nmi },
	{ "offline", trigger_sysrq },	 { "debug", write_the_word },
	{ "trampoline", write_and_spin }, { "mce", wait_for_mce },
	{ "doublefault", double_fault }, { "traced", write_null },
	{ "modules", write_null },
};

static void crash(const char *kind)
{
	char byte;

	check(read(check(open("/dev/crashme", O_RDONLY), "/dev/crashme"), &byte, 1), "read");
	usleep(300000);	/* let the one who wrote "c" go to sleep */
	for (size_t i = 0; i < sizeof(crashes) / sizeof(crashes[0]); i++)
		if (strcmp(crashes[i].kind, kind) == 0)
			crashes[i].crash(kind);
	errx(1, "%s: no crash", kind);
}

static void start_crasher(const char *kind, int cpu)
{
	pid_t pid = start_task("cm-crash");

	if (pid == 0) {
		pin_to_cpu(cpu);
		crash(kind);
	}
	wait_for_state(pid, 'S');
	fprintf(facts, "cm-crash pid=%d tid=%d cpu=%d write_rip=%p spin_rip=%p\n", pid, pid,
		cpu, (void *)write_known_end, (void *)spin_known_loop);
}

int main(int argc, char **argv)
{
	if (argc != 5)
		errx(1, "usage: crashtasks KIND CRASH-CPU SPIN-CPUS FACTS-FILE");
	facts = fopen(argv[4], "w");
	if (!facts)
		err(1, "%s", argv[4]);
	setvbuf(facts, NULL, _IOLBF, 0);
	if (strcmp(argv[1], "traced") == 0)
		write_to_crashme("/dev/crashme", "probe");
	start_sleeper("cm-recurse", "recurse", 'S');
	start_sleeper("cm-owner", "hold", 'S');
	start_sleeper("cm-waiter-0", "wait", 'D');
	start_sleeper("cm-waiter-1", "wait", 'D');
	start_crasher(argv[1], atoi(argv[2]));
	for (const char *cpu = argv[3]; *cpu; cpu++)
		start_spinner(*cpu - '0');
	return fclose(facts) ? 1 : 0;
}
