// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The workload: one process or thread for each thing a dump reader should tell
 * apart, named after it through prctl (README.md lists the names). All sleep but
 * the two wl-spin-* loops, so that what `truth` writes still holds at the crash.
 *
 * A role prepares, reports what it knows of itself with fact(), calls ready() and
 * blocks. Facts go through a pipe to wl-main, which writes them to a file, a line
 * each: "ROLE pid=N tid=N KEY=VALUE...". Values hold no blanks.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <arpa/inet.h>
#include <grp.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { TCP_PORT = 7001, UDP_PORT = 7002, IPC_KEY = 0x6b64756d };

static const char marker[] = "gdbkdump-test-marker";
static int facts[2];	/* pipe: roles -> wl-main */
static __thread const char *role;

static pid_t gettid_now(void)
{
	return syscall(SYS_gettid);
}

static void set_comm(const char *comm)
{
	prctl(PR_SET_NAME, comm);
}

__attribute__((format(printf, 1, 2))) static void fact(const char *format, ...)
{
	char line[512];
	int size = snprintf(line, sizeof(line), "%s pid=%d tid=%d ", role, getpid(),
			    gettid_now());
	va_list arguments;

	va_start(arguments, format);
	size += vsnprintf(line + size, sizeof(line) - size - 1, format, arguments);
	va_end(arguments);
	line[size++] = '\n';
	if (write(facts[1], line, size) != size)
		err(1, "facts");
}

/* An empty line counts as "one more is ready". */
static void ready(void)
{
	if (write(facts[1], "\n", 1) != 1)
		err(1, "facts");
}

/* Processes give their ends of the pipe up: it must not be among their files. */
static void ready_process(void)
{
	ready();
	close(facts[0]);
	close(facts[1]);
}

static int check(int result, const char *what)
{
	if (result < 0)
		err(1, "%s: %s", role, what);
	return result;
}

static void sleep_forever(void)
{
	for (;;)
		pause();
}

static void ready_and_sleep(void)
{
	ready_process();
	sleep_forever();
}

/* ---- states and policies ------------------------------------------------------ */

static void be_plain(void)
{
	fact("state=S");
	ready_and_sleep();
}

static void be_zombie(void)
{
	fact("state=Z exit_code=42");
	ready();
	_exit(42);
}

/* The parent of a vfork child waits uninterruptibly until the child lets go. */
static void be_vfork_parent(void)
{
	fact("state=D");
	if (vfork() == 0) {
		set_comm("wl-vfork-kid");
		role = "wl-vfork-kid";
		fact("state=S");
		ready_and_sleep();
	}
}

static void be_stopped(void)
{
	fact("state=T");
	ready_process();
	raise(SIGSTOP);
	sleep_forever();
}

static void be_tracer(void)
{
	pid_t child = check(fork(), "fork");

	if (child == 0) {
		role = "wl-traced";
		set_comm(role);
		fact("state=t tracer=%d", getppid());
		close(facts[0]);
		close(facts[1]);
		ptrace(PTRACE_TRACEME, 0, 0, 0);
		raise(SIGUSR1);
		sleep_forever();
	}
	waitpid(child, NULL, WUNTRACED);
	fact("state=S traces=%d", child);
	ready_and_sleep();
}

static void set_policy(int policy, int priority)
{
	struct sched_param parameter = { .sched_priority = priority };

	check(sched_setscheduler(0, policy, &parameter), "sched_setscheduler");
	fact("state=S policy=%d rt_priority=%d", policy, priority);
	ready_and_sleep();
}

static void be_fifo(void) { set_policy(SCHED_FIFO, 50); }
static void be_rr(void) { set_policy(SCHED_RR, 10); }
static void be_batch(void) { set_policy(SCHED_BATCH, 0); }
static void be_idle(void) { set_policy(SCHED_IDLE, 0); }

static void be_nice(void)
{
	check(setpriority(PRIO_PROCESS, 0, 7), "setpriority");
	fact("state=S nice=7");
	ready_and_sleep();
}

static void be_user(void)
{
	gid_t groups[] = { 1000, 27, 44 };

	check(setgroups(3, groups), "setgroups");
	check(setresgid(1000, 1000, 1000), "setresgid");
	check(setresuid(1000, 1001, 1002), "setresuid");
	fact("state=S uid=1000 euid=1001 suid=1002 gid=1000");
	ready_and_sleep();
}

static void pin_to_cpu(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	check(sched_setaffinity(0, sizeof(set), &set), "sched_setaffinity");
}

static void be_user_spinner(void)
{
	static volatile uint64_t counter;

	pin_to_cpu(2);
	fact("state=R cpu=2 counter=%p loop=%p", (void *)&counter,
	     (void *)be_user_spinner);
	ready_process();
	for (;;)
		counter++;
}

static void be_kernel_spinner(void)
{
	size_t size = 16 << 20;
	char *sink = mmap(NULL, size, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int zero = check(open("/dev/zero", O_RDONLY), "/dev/zero");

	pin_to_cpu(3);
	fact("state=R cpu=3 fd=%d buffer=%p", zero, (void *)sink);
	ready_process();
	for (;;)
		if (read(zero, sink, size) < 0)
			_exit(1);
}

/* ---- threads, futexes, signals, timers ---------------------------------------- */

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static void *wait_for_mutex(void *unused)
{
	role = "wl-futex-wait";
	set_comm(role);
	fact("state=S futex=%p", (void *)&mutex);
	ready();
	pthread_mutex_lock(&mutex);
	return unused;
}

static void start_thread(void *(*function)(void *), void *argument)
{
	pthread_attr_t attributes;
	pthread_t thread;

	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, 32 << 10);
	pthread_attr_setguardsize(&attributes, 0);
	if (pthread_create(&thread, &attributes, function, argument))
		err(1, "%s: pthread_create", role);
}

/* Holds the mutex; its pipe stays open, for the thread has yet to report. */
static void be_futex_owner(void)
{
	pthread_mutex_lock(&mutex);
	fact("state=S owns_futex=%p", (void *)&mutex);
	start_thread(wait_for_mutex, NULL);
	sleep_forever();
}

static void *be_thread(void *number)
{
	static char names[8][16];
	char *name = names[(intptr_t)number];

	snprintf(name, sizeof(names[0]), "wl-thread-%ld", (long)(intptr_t)number);
	role = name;
	set_comm(name);
	fact("state=S");
	ready();
	if ((intptr_t)number % 2)
		poll(NULL, 0, -1);
	sleep_forever();
	return NULL;
}

static void be_threads(void)
{
	fact("state=S threads=8");
	for (intptr_t number = 0; number < 8; number++)
		start_thread(be_thread, (void *)number);
	sleep_forever();
}

static void ignore_signal(int number)
{
	(void)number;
}

static void be_signals(void)
{
	sigset_t blocked;
	union sigval value = { .sival_int = 0x5151 };

	sigemptyset(&blocked);
	sigaddset(&blocked, SIGUSR1);
	sigaddset(&blocked, SIGRTMIN + 3);
	sigprocmask(SIG_BLOCK, &blocked, NULL);
	signal(SIGUSR2, ignore_signal);
	signal(SIGHUP, SIG_IGN);
	kill(getpid(), SIGUSR1);
	for (int i = 0; i < 3; i++)
		sigqueue(getpid(), SIGRTMIN + 3, value);
	fact("state=S blocked=%d,%d ignored=%d caught=%d handler=%p", SIGUSR1,
	     SIGRTMIN + 3, SIGHUP, SIGUSR2, (void *)ignore_signal);
	ready_and_sleep();
}

static void be_timer(void)
{
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1 };
	struct itimerspec hour = { .it_value.tv_sec = 3600 };
	struct timespec day = { .tv_sec = 86400 };
	timer_t timer;

	check(timer_create(CLOCK_MONOTONIC, &event, &timer), "timer_create");
	check(timer_settime(timer, 0, &hour, NULL), "timer_settime");
	fact("state=S timer_s=3600 sleep_s=86400");
	ready_process();
	nanosleep(&day, NULL);
	sleep_forever();
}

/* ---- files, locks, memory ------------------------------------------------------ */

static int open_with_text(const char *path, int flags)
{
	int fd = check(open(path, O_RDWR | O_CREAT | flags, 0640), path);

	check(write(fd, marker, sizeof(marker)), path);
	return fd;
}

static void be_files(void)
{
	int plain = open_with_text("/tmp/wl-plain", 0);
	int append = open_with_text("/tmp/wl-append", O_APPEND | O_CLOEXEC);
	int deleted = open_with_text("/tmp/wl-deleted", 0);
	int disk = open_with_text("/mnt/data/wl on disk", 0);
	int directory = check(open("/tmp", O_RDONLY | O_DIRECTORY), "/tmp");
	int pipe_ends[2], pair[2], epoll = check(epoll_create1(0), "epoll");
	sigset_t none;

	sigemptyset(&none);
	unlink("/tmp/wl-deleted");
	fsync(disk);
	lseek(plain, 7, SEEK_SET);
	check(pipe2(pipe_ends, O_NONBLOCK), "pipe");
	check(write(pipe_ends[1], marker, sizeof(marker)), "pipe");
	check(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair), "socketpair");
	int event = check(eventfd(77, 0), "eventfd");
	struct epoll_event wanted = { .events = EPOLLIN };
	epoll_ctl(epoll, EPOLL_CTL_ADD, event, &wanted);
	fact("plain=%d offset=7 append=%d deleted=%d disk=%d directory=%d", plain,
	     append, deleted, disk, directory);
	fact("pipe=%d,%d socketpair=%d,%d epoll=%d eventfd=%d timerfd=%d "
	     "signalfd=%d inotify=%d memfd=%d",
	     pipe_ends[0], pipe_ends[1], pair[0], pair[1], epoll, event,
	     timerfd_create(CLOCK_MONOTONIC, 0), signalfd(-1, &none, 0),
	     inotify_init(), memfd_create("wl-memfd", 0));
	ready_and_sleep();
}

static void be_pipe_reader(void)
{
	int ends[2];
	char byte;

	check(pipe(ends), "pipe");
	fact("state=S pipe=%d,%d", ends[0], ends[1]);
	ready_process();
	if (read(ends[0], &byte, 1))
		sleep_forever();
}

static void be_epoll_waiter(void)
{
	struct epoll_event event;
	int epoll = check(epoll_create1(0), "epoll");

	fact("state=S epoll=%d", epoll);
	ready_process();
	epoll_wait(epoll, &event, 1, -1);
}

static void be_deep(void)
{
	char name[101] = { 0 };

	memset(name, 'd', sizeof(name) - 1);
	check(chdir("/tmp"), "chdir");
	for (int depth = 0; depth < 5; depth++) {
		mkdir(name, 0755);
		check(chdir(name), "chdir");
	}
	fact("state=S depth=5 name_length=100");
	ready_and_sleep();
}

static void be_flock_owner(void)
{
	int fd = open_with_text("/tmp/wl-flock", 0);
	struct flock range = { .l_type = F_WRLCK, .l_start = 10, .l_len = 20 };
	pid_t waiter;

	check(flock(fd, LOCK_EX), "flock");
	check(fcntl(fd, F_SETLK, &range), "fcntl");
	fact("state=S fd=%d posix=10-29", fd);
	waiter = check(fork(), "fork");
	if (waiter == 0) {
		role = "wl-flock-wait";
		set_comm(role);
		close(fd);
		fd = check(open("/tmp/wl-flock", O_RDWR), "open");
		fact("state=S fd=%d", fd);
		ready_process();
		flock(fd, LOCK_EX);
	}
	close(facts[0]);
	close(facts[1]);
	sleep_forever();
}

static void be_memory(void)
{
	size_t size = 4 << 20;
	char *anonymous = mmap(NULL, size, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	char *untouched = mmap(NULL, size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *locked = mmap(NULL, 65536, PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int fd = open_with_text("/tmp/wl-mapped", 0);
	char *file = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);

	strcpy(anonymous + 4090, marker);	/* across a page boundary */
	check(mlock(locked, 65536), "mlock");
	fact("state=S marker=%s marker_at=%p untouched=%p locked=%p file=%p byte=%d",
	     marker, (void *)(anonymous + 4090), (void *)untouched, (void *)locked,
	     (void *)file, file[0]);
	ready_and_sleep();
}

/* ---- sockets ------------------------------------------------------------------- */

static struct sockaddr_in loopback(int port)
{
	return (struct sockaddr_in){ .sin_family = AF_INET,
				     .sin_port = htons(port),
				     .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
}

static void be_tcp_listener(void)
{
	struct sockaddr_in address = loopback(TCP_PORT);
	struct sockaddr_in6 any = { .sin6_family = AF_INET6,
				    .sin6_port = htons(TCP_PORT + 10) };
	int server = check(socket(AF_INET, SOCK_STREAM, 0), "socket");
	int server6 = check(socket(AF_INET6, SOCK_STREAM, 0), "socket");
	int one = 1;

	setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	check(bind(server, (void *)&address, sizeof(address)), "bind");
	check(listen(server, 5), "listen");
	check(bind(server6, (void *)&any, sizeof(any)), "bind6");
	check(listen(server6, 5), "listen6");
	int client = check(socket(AF_INET, SOCK_STREAM, 0), "socket");
	check(connect(client, (void *)&address, sizeof(address)), "connect");
	int accepted = check(accept(server, NULL, NULL), "accept");
	/* Sits unread in the receive queue of the accepted end. */
	check(send(client, marker, sizeof(marker), 0), "send");
	fact("state=S port=%d port6=%d listen=%d,%d client=%d accepted=%d unread=%zu",
	     TCP_PORT, TCP_PORT + 10, server, server6, client, accepted,
	     sizeof(marker));
	ready_process();
	accept(server, NULL, NULL);
}

static void be_udp(void)
{
	struct sockaddr_in address = loopback(UDP_PORT);
	int fd = check(socket(AF_INET, SOCK_DGRAM, 0), "socket");
	char byte;

	check(bind(fd, (void *)&address, sizeof(address)), "bind");
	fact("state=S port=%d fd=%d", UDP_PORT, fd);
	ready_process();
	recv(fd, &byte, 1, 0);
}

static void be_unix_server(void)
{
	struct sockaddr_un path = { .sun_family = AF_UNIX, .sun_path = "/run/wl.sock" };
	struct sockaddr_un abstract = { .sun_family = AF_UNIX, .sun_path = "\0wl-abstract" };
	int stream = check(socket(AF_UNIX, SOCK_STREAM, 0), "socket");
	int datagram = check(socket(AF_UNIX, SOCK_DGRAM, 0), "socket");
	int client = check(socket(AF_UNIX, SOCK_STREAM, 0), "socket");
	socklen_t size = sizeof(sa_family_t) + sizeof("\0wl-abstract") - 1;

	check(bind(stream, (void *)&path, sizeof(path)), "bind");
	check(listen(stream, 3), "listen");
	check(bind(datagram, (void *)&abstract, size), "bind");
	check(connect(client, (void *)&path, sizeof(path)), "connect");
	int accepted = check(accept(stream, NULL, NULL), "accept");
	fact("state=S path=/run/wl.sock abstract=wl-abstract stream=%d datagram=%d "
	     "client=%d accepted=%d", stream, datagram, client, accepted);
	ready_process();
	accept(stream, NULL, NULL);
}

/* ---- System V IPC, namespaces -------------------------------------------------- */

static void be_shm(void)
{
	int id = check(shmget(IPC_KEY, 65536, IPC_CREAT | 0600), "shmget");
	char *memory = shmat(id, NULL, 0);

	strcpy(memory, marker);
	fact("state=S key=%#x id=%d size=65536 at=%p", IPC_KEY, id, (void *)memory);
	ready_and_sleep();
}

static void be_semaphore_waiter(void)
{
	unsigned short values[] = { 0, 3, 5 };
	int id = check(semget(IPC_KEY, 3, IPC_CREAT | 0640), "semget");
	struct sembuf take = { .sem_num = 0, .sem_op = -1 };

	check(semctl(id, 0, SETALL, values), "semctl");
	fact("state=S key=%#x id=%d values=0,3,5", IPC_KEY, id);
	ready_process();
	semop(id, &take, 1);
}

static void be_messages(void)
{
	struct { long type; char text[32]; } message = { .type = 9, .text = "first" };
	int id = check(msgget(IPC_KEY, IPC_CREAT | 0600), "msgget");

	check(msgsnd(id, &message, 6, 0), "msgsnd");
	strcpy(message.text, "the second message");
	check(msgsnd(id, &message, 19, 0), "msgsnd");
	fact("state=S key=%#x id=%d messages=2 bytes=25", IPC_KEY, id);
	ready_process();
	message.type = 0;
	msgrcv(id, &message, sizeof(message.text), 1, 0);
}

/* In new pid, UTS, mount and IPC namespaces its child is pid 1. */
static void be_namespaces(void)
{
	check(unshare(CLONE_NEWPID | CLONE_NEWUTS | CLONE_NEWNS | CLONE_NEWIPC),
	      "unshare");
	pid_t child = check(fork(), "fork");

	if (child == 0) {
		role = "wl-pidns-init";
		set_comm(role);
		check(sethostname("wl-container", 12), "sethostname");
		fact("state=S hostname=wl-container");
		ready_and_sleep();
	}
	fact("state=S child=%d", child);
	ready_and_sleep();
}

/* ---- the crowd of the big dump -------------------------------------------------- */

static void *be_crowd_thread(void *name)
{
	set_comm(name);
	ready();
	sleep_forever();
	return NULL;
}

static void be_crowd(int number, int threads)
{
	static char names[8][32];
	char name[32];

	snprintf(name, sizeof(name), "wl-p%05d", number);
	set_comm(name);
	for (int i = 0; i < threads && i < 8; i++) {
		snprintf(names[i], sizeof(names[i]), "wl-p%05d-t%d", number, i);
		start_thread(be_crowd_thread, names[i]);
	}
	ready();
	sleep_forever();
}

/* ---- wl-main --------------------------------------------------------------------- */

struct role {
	const char *comm;
	void (*run)(void);
	int nr_ready;	/* how many times ready() is called for it */
};

static const struct role roles[] = {
	{ "wl-zombie", be_zombie, 1 },
	{ "wl-vfork", be_vfork_parent, 1 },
	{ "wl-stopped", be_stopped, 1 },
	{ "wl-tracer", be_tracer, 1 },
	{ "wl-fifo", be_fifo, 1 },
	{ "wl-rr", be_rr, 1 },
	{ "wl-batch", be_batch, 1 },
	{ "wl-idle", be_idle, 1 },
	{ "wl-nice", be_nice, 1 },
	{ "wl-user", be_user, 1 },
	{ "wl-futex", be_futex_owner, 1 },
	{ "wl-threads", be_threads, 8 },
	{ "wl-signals", be_signals, 1 },
	{ "wl-timer", be_timer, 1 },
	{ "wl-files", be_files, 1 },
	{ "wl-pipe", be_pipe_reader, 1 },
	{ "wl-epoll", be_epoll_waiter, 1 },
	{ "wl-deep", be_deep, 1 },
	{ "wl-flock", be_flock_owner, 1 },
	{ "wl-memory", be_memory, 1 },
	{ "wl-tcp", be_tcp_listener, 1 },
	{ "wl-udp", be_udp, 1 },
	{ "wl-unix", be_unix_server, 1 },
	{ "wl-shm", be_shm, 1 },
	{ "wl-sem", be_semaphore_waiter, 1 },
	{ "wl-msg", be_messages, 1 },
	{ "wl-pidns", be_namespaces, 2 },
	/* Names that a careless reader or terminal chokes on. */
	{ "wl-\033[31mesc", be_plain, 1 },
	{ "wl-new\nline", be_plain, 1 },
	{ "wl-\377-byte", be_plain, 1 },
	{ "wl )( odd", be_plain, 1 },
	{ "wl-fifteen-char", be_plain, 1 },
	/* Last, when nobody needs the CPUs any more. */
	{ "wl-spin-user", be_user_spinner, 1 },
	{ "wl-spin-kern", be_kernel_spinner, 1 },
};

enum { NR_ROLES = sizeof(roles) / sizeof(roles[0]) };

/* In facts a role is named without what would break the line format. */
static const char *printable(const char *comm)
{
	static char name[16];

	strncpy(name, comm, sizeof(name) - 1);
	for (char *c = name; *c; c++)
		if (*c <= ' ' || *c > '~')
			*c = '_';
	return name;
}

static void start_role(const struct role *entry)
{
	if (check(fork(), "fork"))
		return;
	role = printable(entry->comm);
	set_comm(entry->comm);
	entry->run();
	_exit(1);
}

/*
 * Copy facts to the file until so many have called ready(). A role that failed has
 * said so on the console and will never be ready: the alarm then ends us, and init
 * sees it.
 */
static void collect_facts(FILE *file, int nr_ready)
{
	char chunk[4096];
	static char last = '\n';

	alarm(120);
	while (nr_ready > 0) {
		ssize_t size = check(read(facts[0], chunk, sizeof(chunk)), "facts");
		for (ssize_t i = 0; i < size; i++) {
			if (chunk[i] == '\n' && last == '\n')
				nr_ready--;
			else
				fputc(chunk[i], file);
			last = chunk[i];
		}
	}
	alarm(0);
}

static void write_log_marker(const char *text)
{
	int fd = check(open("/dev/kmsg", O_WRONLY), "/dev/kmsg");

	check(write(fd, text, strlen(text)), "/dev/kmsg");
	close(fd);
}

/* The newline ends the record: the newest without one stays open, and unreadable. */
static void write_log_markers(void)
{
	char line[905] = "<5>test-kernels: long ";
	size_t start = strlen(line), end = sizeof(line) - 2;

	for (size_t i = start; i < end; i++)
		line[i] = 'a' + (i - start) % 26;
	line[end] = '\n';
	write_log_marker("<6>test-kernels: plain marker\n");
	write_log_marker(line);
	write_log_marker("<4>test-kernels: first line\nsecond line\nthird line\n");
	write_log_marker("<3>test-kernels: control \033[31mred\033[0m and \t tab \\ \177\n");
	write_log_marker("<28>test-kernels: from a daemon, with caf\303\251\n");
}

static void join_cgroup(void)
{
	int fd = check(open("/sys/fs/cgroup/workload.slice/cgroup.procs", O_WRONLY),
		       "cgroup");

	check(write(fd, "0", 1), "cgroup");
	close(fd);
}

static void start_crowd(FILE *file, int processes, int threads)
{
	for (int number = 0; number < processes; number++) {
		if (check(fork(), "fork") == 0)
			be_crowd(number, threads);
		/* In step: a few hundred at once only fight for the CPUs. */
		collect_facts(file, 1 + threads);
	}
	fact("processes=%d threads=%d", processes, threads);
}

static void be_main(FILE *file, int processes, int threads)
{
	role = "wl-main";
	set_comm(role);
	setenv("WL_ENVIRONMENT", marker, 1);
	join_cgroup();
	fact("state=S marker=%s marker_at=%p", marker, (void *)marker);
	start_crowd(file, processes, threads);
	for (int i = 0; i < NR_ROLES; i++) {
		start_role(&roles[i]);
		collect_facts(file, roles[i].nr_ready);
	}
	write_log_markers();
	sleep(1);	/* let those who reported go to sleep */
	fclose(file);
}

int main(int argc, char **argv)
{
	char byte = 0;
	int done[2];

	if (argc != 4)
		errx(1, "usage: workload PROCESSES THREADS FACTS-FILE");
	role = "workload";
	signal(SIGPIPE, SIG_IGN);
	check(pipe(done), "pipe");
	if (check(fork(), "fork")) {
		close(done[1]);
		return read(done[0], &byte, 1) != 1;
	}
	FILE *file = fopen(argv[3], "w");
	if (!file || pipe(facts))
		err(1, "%s", argv[3]);
	setsid();
	be_main(file, atoi(argv[1]), atoi(argv[2]));
	close(facts[0]);
	close(facts[1]);
	close(done[0]);
	check(write(done[1], "", 1), "done");
	close(done[1]);
	sleep_forever();
}
