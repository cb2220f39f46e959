// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Crash the kernel, or sleep, with a stack that is known from this source: whoever
 * writes a word to /dev/crashme gets to the function of that name through
 * crashme_write() and crashme_middle(). ../crash.py has the same numbers.
 *
 * Locals are volatile, so that they are in memory, and what a function was given is
 * used again after its calls, so that it is still there while they last.
 */
#include <linux/completion.h>
#include <linux/fs.h>
#include <linux/hrtimer.h>
#include <linux/hw_breakpoint.h>
#include <linux/kprobes.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/perf_event.h>
#include <linux/timer.h>
#include <linux/uaccess.h>
#include <linux/version.h>
#include <linux/wait.h>

/* noipa: not inlined, not cloned, its arguments not replaced by constants. */
#define KEPT static __attribute__((noipa))

struct crashme_record {
	struct crashme_record *next;
	long number;
};

static struct crashme_record crashme_last = { .number = 77 };
static struct hrtimer crashme_hrtimer;
static struct timer_list crashme_timer;
static volatile bool crashme_true = true;
static DEFINE_MUTEX(crashme_mutex);
static DECLARE_COMPLETION(crashme_begin);
static DECLARE_WAIT_QUEUE_HEAD(crashme_never);

/* ---- what the functions below end in -------------------------------------------- */

/* Reads address 8: the second member of no record. */
KEPT long crashme_follow(struct crashme_record *record, long factor)
{
	volatile long local = factor * 2;
	long number = record->next->number;

	return number + local + factor;
}

KEPT long crashme_sleep(long reason)
{
	volatile long local = reason + 1;

	wait_event_interruptible(crashme_never, !crashme_true);
	return local + reason;
}

KEPT long crashme_spin(long start)
{
	volatile long counter = start;

	while (crashme_true)
		counter++;
	return counter + start;
}

/* ---- crashes in process context -------------------------------------------------- */

KEPT long crashme_null(long first, long second)
{
	volatile long mark = 101;

	return crashme_follow(&crashme_last, 5) + mark + first + second;
}

KEPT long crashme_gpf(long first, long second)
{
	volatile long mark = 102;
	long number = *(volatile long *)0xdead4ead00000008;

	return number + mark + first + second;
}

KEPT long crashme_bug(long first, long second)
{
	volatile long mark = 103;

	if (crashme_true)
		BUG();
	return mark + first + second;
}

/* Some thirty of these fill a stack of 16 KiB. */
KEPT long crashme_swallow(long level)
{
	volatile long bytes[64];

	bytes[0] = level;
	if (crashme_true)
		bytes[1] = crashme_swallow(level + 1);
	return bytes[0] + bytes[1] + level;
}

KEPT long crashme_overflow(long first, long second)
{
	volatile long mark = 104;

	return crashme_swallow(1) + mark + first + second;
}

/* Until the watchdog's timer has had enough of it. */
KEPT long crashme_lockup(long first, long second)
{
	volatile long mark = 105;
	long counter;

	preempt_disable();
	counter = crashme_spin(7);
	preempt_enable();
	return counter + mark + first + second;
}

/*
 * The stack pointer leads nowhere, so the push faults, and so does what the CPU pushes
 * for the fault: a double fault. An array of no constant size makes the compiler keep
 * a frame pointer, by which the caller is found all the same.
 */
KEPT long crashme_doublefault(long first, long second)
{
	volatile long mark = 108;
	volatile char *bytes = __builtin_alloca(first);

	bytes[0] = 1;
	asm volatile("mov %0, %%rsp; push %%rax" : : "r"(-4096L + 8) : "memory");
	return bytes[0] + mark + first + second;
}

/* ---- crashes in interrupts ------------------------------------------------------- */

/* The call is its last instruction: the return address is that of another function. */
KEPT enum hrtimer_restart crashme_hard_expired(struct hrtimer *timer)
{
	volatile long mark = 201;

	panic("crashme: hard interrupt, mark %ld", mark);
}

/* Interrupts the loop that this ends in, hence kernel code. */
KEPT long crashme_hardirq(long first, long second)
{
	volatile long mark = 106;

	/* Since Linux kernel commit 908a1d775422 ("hrtimers: Introduce hrtimer_setup()
	 * to replace hrtimer_init()") (in v6.13). */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 13, 0)
	hrtimer_setup(&crashme_hrtimer, crashme_hard_expired, CLOCK_MONOTONIC,
		      HRTIMER_MODE_REL_PINNED_HARD);
#else
	hrtimer_init(&crashme_hrtimer, CLOCK_MONOTONIC, HRTIMER_MODE_REL_PINNED_HARD);
	crashme_hrtimer.function = crashme_hard_expired;
#endif
	hrtimer_start(&crashme_hrtimer, ms_to_ktime(200), HRTIMER_MODE_REL_PINNED_HARD);
	return crashme_spin(9) + mark + first + second;
}

KEPT void crashme_soft_expired(struct timer_list *timer)
{
	volatile long mark = 202;

	/* Not in ksoftirqd, which helps out when CPUs are slow: again, a little later. */
	if (current->flags & PF_KTHREAD) {
		mod_timer(timer, jiffies + 3);
		return;
	}
	mark += crashme_follow(&crashme_last, 6);
}

/* Returns, so that the writer is in user space when the timer expires on its CPU. */
KEPT long crashme_softirq(long first, long second)
{
	timer_setup(&crashme_timer, crashme_soft_expired, TIMER_PINNED);
	crashme_timer.expires = jiffies + HZ / 5;
	add_timer_on(&crashme_timer, raw_smp_processor_id());
	return first + second;
}

/* ---- crashes in other exceptions --------------------------------------------------- */

static struct perf_event *__percpu *crashme_breakpoint;
static volatile long crashme_watched;
/* A function that runs on the entry stack, which only kallsyms knows. */
static unsigned long crashme_entry;
module_param_named(entry, crashme_entry, ulong, 0);

KEPT void crashme_hit(struct perf_event *event, struct perf_sample_data *data,
		      struct pt_regs *regs)
{
	volatile long mark = 203;

	panic("crashme: debug exception, mark %ld", mark);
}

KEPT long crashme_watch(void)
{
	struct perf_event_attr attr;

	hw_breakpoint_init(&attr);
	attr.bp_addr = (unsigned long)&crashme_watched;
	attr.bp_len = HW_BREAKPOINT_LEN_8;
	attr.bp_type = HW_BREAKPOINT_W;
	crashme_breakpoint = register_wide_hw_breakpoint(&attr, crashme_hit, NULL);
	return PTR_ERR_OR_ZERO((void __force *)crashme_breakpoint);
}

KEPT long crashme_debug(long first, long second)
{
	volatile long mark = 107;

	if (!crashme_watch())
		crashme_watched = mark;
	return mark + first + second;
}

/*
 * Returns, so that the next interrupt comes in user mode, and with it a debug exception
 * before the kernel has left the entry stack. Breakpoints in entry code are refused, so
 * the registers of a good one are written to.
 */
KEPT long crashme_trampoline(long first, long second)
{
	if (!crashme_watch()) {
		asm volatile("mov %0, %%db0" : : "r"(crashme_entry));
		/* Enabled on this CPU, to be executed. */
		asm volatile("mov %0, %%db7" : : "r"(0x402L));
	}
	return first + second;
}

/* Until the machine is told that it is broken. */
KEPT long crashme_mce(long first, long second)
{
	volatile long mark = 109;

	return crashme_spin(11) + mark + first + second;
}

/* ---- return addresses that are replaced -------------------------------------------- */

static struct kretprobe crashme_kretprobe = {
	.kp.symbol_name = "crashme_sleep",
	.maxactive = 16,
};

KEPT long crashme_probe(long first, long second)
{
	return register_kretprobe(&crashme_kretprobe);
}

/* ---- tasks that sleep ------------------------------------------------------------- */

KEPT long crashme_descend(long depth, long seed)
{
	volatile long local = depth * 1000 + seed;
	long below;

	if (depth > 1)
		below = crashme_descend(depth - 1, seed + 3);
	else
		below = crashme_sleep(17);
	return below + local + depth + seed;
}

KEPT long crashme_recurse(long first, long second)
{
	volatile long mark = 301;

	return crashme_descend(60, 5) + mark + first + second;
}

KEPT long crashme_hold(long first, long second)
{
	volatile long mark = 302;
	long slept;

	mutex_lock(&crashme_mutex);
	slept = crashme_sleep(18);
	mutex_unlock(&crashme_mutex);
	return slept + mark + first + second;
}

KEPT long crashme_wait(long first, long second)
{
	volatile long mark = 303;

	mutex_lock(&crashme_mutex);
	mutex_unlock(&crashme_mutex);
	return mark + first + second;
}

/* The truth is written: those who read /dev/crashme may go on, the writer may not. */
KEPT long crashme_go(long first, long second)
{
	volatile long mark = 304;

	complete_all(&crashme_begin);
	return crashme_sleep(19) + mark + first + second;
}

/* ---- /dev/crashme ----------------------------------------------------------------- */

typedef long (*crashme_function)(long first, long second);

static const struct {
	const char *word;
	crashme_function function;
} crashme_functions[] = {
	{ "null", crashme_null },	{ "gpf", crashme_gpf },
	{ "bug", crashme_bug },		{ "overflow", crashme_overflow },
	{ "lockup", crashme_lockup },	{ "hardirq", crashme_hardirq },
	{ "softirq", crashme_softirq },	{ "doublefault", crashme_doublefault },
	{ "debug", crashme_debug },	{ "trampoline", crashme_trampoline },
	{ "mce", crashme_mce },		{ "probe", crashme_probe },
	{ "recurse", crashme_recurse },	{ "hold", crashme_hold },
	{ "wait", crashme_wait },	{ "c", crashme_go },
};

KEPT long crashme_middle(crashme_function function, long first, long second)
{
	volatile long product = first * second;

	return function(first + 1, second + 1) + product + first + second;
}

static ssize_t crashme_write(struct file *file, const char __user *buffer, size_t size,
			     loff_t *position)
{
	char word[16] = "";
	size_t i;

	if (size >= sizeof(word) || copy_from_user(word, buffer, size))
		return -EINVAL;
	for (i = 0; i < ARRAY_SIZE(crashme_functions); i++) {
		if (strcmp(word, crashme_functions[i].word))
			continue;
		crashme_middle(crashme_functions[i].function, 1000, 2000);
		return size;
	}
	return -EINVAL;
}

/* Waits until somebody has written "c". */
static ssize_t crashme_read(struct file *file, char __user *buffer, size_t size,
			    loff_t *position)
{
	return wait_for_completion_interruptible(&crashme_begin);
}

static const struct file_operations crashme_operations = {
	.owner = THIS_MODULE,
	.read = crashme_read,
	.write = crashme_write,
};

static struct miscdevice crashme_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "crashme",
	.fops = &crashme_operations,
};

static int __init crashme_init(void)
{
	return misc_register(&crashme_device);
}

/* No way out: tasks sleep in here forever. */
module_init(crashme_init);
MODULE_DESCRIPTION("Crash with a stack that is known beforehand");
MODULE_LICENSE("GPL");
