/*
 * The guest's first process: it brings the machine up and then runs scripts
 * for the host, which talks to it over a virtio port.
 *
 * Frame, both ways: job u32, kind u32, length u32, all little endian, then
 * `length` bytes.  The host chooses the job numbers.
 *
 *     to the guest    RUN script      run it with /bin/sh -c in a session of its own
 *                     INPUT bytes     bytes for its standard input
 *                     CLOSE           end of its standard input
 *                     SIGNAL u32      for its process group
 *     to the host     HELLO release   once, when the machine is ready
 *                     OUTPUT bytes    standard output and error, as they come
 *                     EXIT u32        exit status, or 128 + signal
 *
 * EXIT follows all that the shell and its finished children wrote.  What a
 * process left in the background writes later goes nowhere.
 *
 * When the host goes away the machine resets, and QEMU, told not to reboot,
 * ends: a test run that was killed leaves no guest behind.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

enum { RUN = 1, INPUT, CLOSE, SIGNAL, HELLO = 16, OUTPUT, EXIT };

enum { JOBS = 64, CHUNK = 64 * 1024, SCRIPT_MAX = 120 * 1024 };

struct job {
	uint32_t number;
	pid_t pid; /* 0: the slot is free */
	int in, out;
};

static struct job jobs[JOBS];
static int port = -1;
static char chunk[CHUNK];

static void say(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	printf("agent: ");
	vprintf(format, args);
	printf("\n");
	fflush(stdout);
	va_end(args);
}

static void die(const char *what)
{
	say("%s: %s", what, strerror(errno));
	/* Without sync(): a mount whose server is gone would hold it for ever. */
	reboot(RB_AUTOBOOT);
	_exit(1);
}

static void mount_at(const char *type, const char *where)
{
	mkdir(where, 0755);
	if (mount(type, where, type, 0, NULL) < 0 && errno != EBUSY)
		die(where);
}

static void load_modules(void)
{
	char path[256];
	FILE *list = fopen("/modules/order", "r");

	if (!list)
		die("/modules/order");
	while (fgets(path, sizeof path, list)) {
		path[strcspn(path, "\n")] = 0;
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			die(path);
		if (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST)
			die(path);
		close(fd);
	}
	fclose(list);
}

static void interface_up(const char *name, const char *address, const char *mask)
{
	struct ifreq request = { 0 };
	struct sockaddr_in *in = (struct sockaddr_in *)&request.ifr_addr;
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		die("socket");
	snprintf(request.ifr_name, IFNAMSIZ, "%s", name);
	in->sin_family = AF_INET;
	inet_pton(AF_INET, address, &in->sin_addr);
	if (ioctl(fd, SIOCSIFADDR, &request) < 0)
		die(name);
	inet_pton(AF_INET, mask, &in->sin_addr);
	if (ioctl(fd, SIOCSIFNETMASK, &request) < 0)
		die(name);
	if (ioctl(fd, SIOCGIFFLAGS, &request) < 0)
		die(name);
	request.ifr_flags |= IFF_UP | IFF_RUNNING;
	if (ioctl(fd, SIOCSIFFLAGS, &request) < 0)
		die(name);
	close(fd);
}

static void open_port(void)
{
	/* The port arrives by a control message some time after its driver. */
	for (int tries = 0; tries < 2000; tries++) {
		port = open("/dev/vport0p1", O_RDWR | O_CLOEXEC);
		if (port >= 0)
			return;
		usleep(5000);
	}
	die("/dev/vport0p1");
}

static void write_all(int fd, const void *bytes, size_t length)
{
	const char *at = bytes;

	while (length > 0) {
		ssize_t n = write(fd, at, length);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			die("write to the host");
		at += n;
		length -= n;
	}
}

static void read_all(void *bytes, size_t length)
{
	char *at = bytes;

	while (length > 0) {
		ssize_t n = read(port, at, length);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			die("the host is gone");
		at += n;
		length -= n;
	}
}

static void send_frame(uint32_t number, uint32_t kind, const void *bytes, uint32_t length)
{
	uint32_t header[3] = { number, kind, length };

	write_all(port, header, sizeof header);
	write_all(port, bytes, length);
}

static void run(uint32_t number, const char *script)
{
	struct job *job = jobs;
	int in[2], out[2];

	while (job < jobs + JOBS && job->pid)
		job++;
	/*
	 * Output comes through a socket, because sendfile(2) to a pipe, which is
	 * busybox's cat, holds the pipe's lock while it waits for its file: with
	 * a parked read there, our own read would hang with it.
	 */
	if (job == jobs + JOBS || pipe2(in, O_CLOEXEC) < 0 ||
	    socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, out) < 0)
		die("no room for another job");
	pid_t pid = fork();
	if (pid < 0)
		die("fork");
	if (pid == 0) {
		sigset_t none;

		sigemptyset(&none);
		sigprocmask(SIG_SETMASK, &none, NULL);
		signal(SIGPIPE, SIG_DFL);
		setsid();
		dup2(in[0], 0);
		dup2(out[1], 1);
		dup2(out[1], 2);
		execl("/bin/sh", "sh", "-c", script, (char *)NULL);
		_exit(127);
	}
	close(in[0]);
	close(out[1]);
	fcntl(out[0], F_SETFL, O_NONBLOCK);
	*job = (struct job){ .number = number, .pid = pid, .in = in[1], .out = out[0] };
}

static void drain(struct job *job, int rounds)
{
	ssize_t n;

	while (rounds-- > 0 && job->out >= 0 && (n = read(job->out, chunk, sizeof chunk)) != -1) {
		if (n == 0) {
			close(job->out);
			job->out = -1;
		} else {
			send_frame(job->number, OUTPUT, chunk, n);
		}
	}
}

static void reap(void)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		for (struct job *job = jobs; job < jobs + JOBS; job++) {
			if (job->pid != pid)
				continue;
			uint32_t code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
			/* Enough for what a full socket holds, and an end if someone still writes. */
			drain(job, 1024);
			send_frame(job->number, EXIT, &code, sizeof code);
			if (job->out >= 0)
				close(job->out);
			if (job->in >= 0)
				close(job->in);
			job->pid = 0;
		}
	}
}

static void obey(void)
{
	static char body[SCRIPT_MAX + 1];
	uint32_t header[3];
	uint32_t signo;

	read_all(header, sizeof header);
	if (header[2] > SCRIPT_MAX)
		die("a frame is too long");
	read_all(body, header[2]);
	body[header[2]] = 0;
	if (header[1] == RUN) {
		run(header[0], body);
		return;
	}
	for (struct job *job = jobs; job < jobs + JOBS; job++) {
		if (!job->pid || job->number != header[0])
			continue;
		switch (header[1]) {
		case INPUT:
			/* A job that left its input unread must not stop the agent. */
			if (job->in >= 0 && write(job->in, body, header[2]) < 0)
				say("job %u takes no input: %s", job->number, strerror(errno));
			break;
		case CLOSE:
			if (job->in >= 0)
				close(job->in);
			job->in = -1;
			break;
		case SIGNAL:
			memcpy(&signo, body, sizeof signo);
			kill(-job->pid, signo);
			break;
		}
	}
}

static void serve(void)
{
	struct pollfd polled[JOBS + 2];
	struct job *owner[JOBS + 2];
	struct signalfd_siginfo info;
	sigset_t child;

	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	sigprocmask(SIG_BLOCK, &child, NULL);
	signal(SIGPIPE, SIG_IGN);
	int signals = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);

	for (;;) {
		int count = 2;

		polled[0] = (struct pollfd){ .fd = port, .events = POLLIN };
		polled[1] = (struct pollfd){ .fd = signals, .events = POLLIN };
		for (struct job *job = jobs; job < jobs + JOBS; job++) {
			if (job->pid && job->out >= 0) {
				owner[count] = job;
				polled[count++] = (struct pollfd){ .fd = job->out, .events = POLLIN };
			}
		}
		if (poll(polled, count, -1) < 0)
			continue;
		for (int i = 2; i < count; i++)
			if (polled[i].revents)
				drain(owner[i], 1);
		if (polled[1].revents) {
			while (read(signals, &info, sizeof info) > 0)
				;
			reap();
		}
		if (polled[0].revents & POLLIN)
			obey();
		else if (polled[0].revents & (POLLHUP | POLLERR))
			die("the host hung up");
	}
}

int guest_init(void)
{
	struct utsname name;

	mount_at("proc", "/proc");
	mount_at("sysfs", "/sys");
	mount_at("devtmpfs", "/dev");
	mount_at("tmpfs", "/tmp");
	/* The initramfs names no console, so the kernel gave us no descriptors. */
	int console = open("/dev/console", O_RDWR);
	for (int fd = 0; fd < 3; fd++)
		if (console >= 0 && console != fd)
			dup2(console, fd);
	if (console > 2)
		close(console);
	setenv("PATH", "/bin", 1);
	setenv("HOME", "/tmp", 1);
	if (chdir("/tmp") < 0)
		die("/tmp");
	umask(022);
	load_modules();
	interface_up("lo", "127.0.0.1", "255.0.0.0");
	interface_up("eth0", "10.0.2.15", "255.255.255.0");
	open_port();
	uname(&name);
	send_frame(0, HELLO, name.release, strlen(name.release));
	serve();
	return 1;
}
