/*
 * probe: what a shell cannot ask the kernel for.  In the guest:
 *
 *     probe setxattr PATH NAME VALUE      probe getxattr PATH NAME
 *     probe listxattr PATH                probe removexattr PATH NAME
 *     probe lock PATH START LEN shared|exclusive [wait] [hold]
 *                     takes a byte-range lock (LEN 0: to the end); `wait`
 *                     waits for it, `hold` keeps it until a line or the end of
 *                     standard input
 *     probe getlock PATH START LEN
 *                     `free`, or the lock that an exclusive one would meet:
 *                     `shared|exclusive START LEN`
 *     probe locktwice PATH
 *                     two descriptors of one process lock the same range
 *     probe rename2 FROM TO noreplace|exchange|plain
 *     probe orphan PATH
 *                     writes and reads a file that it has unlinked
 *     probe openread PATH COUNT TIMES [nonblock]
 *                     a line `open`; then, for each of TIMES read(2) calls of
 *                     COUNT bytes, a line `N bytes` and the bytes
 *     probe mmapread PATH
 *                     the file's bytes by way of a private mapping
 *     probe pwrite PATH OFFSET TEXT       probe fsync PATH
 *     probe settime PATH SECONDS NANOSECONDS
 *     probe gettime PATH
 *     probe readdir PATH
 *                     how many names, and how many of them differ
 *
 * Every failure is a line `ERRNO_NUMBER TEXT` on standard error and status 1.
 * As the first process it is the guest's agent (agent.c).  On the host,
 * `probe relay PORT` joins standard input and output to 127.0.0.1:PORT.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

int guest_init(void);

static int failed(void)
{
	fprintf(stderr, "%d %s\n", errno, strerror(errno));
	return 1;
}

static int is(const char *a, const char *b)
{
	return strcmp(a, b) == 0;
}

static int setxattr_(int argc, char **argv)
{
	(void)argc;
	return setxattr(argv[0], argv[1], argv[2], strlen(argv[2]), 0) < 0 ? failed() : 0;
}

static int getxattr_(int argc, char **argv)
{
	static char value[65536];
	ssize_t n = getxattr(argv[0], argv[1], value, sizeof value);

	(void)argc;
	if (n < 0)
		return failed();
	fwrite(value, 1, n, stdout);
	putchar('\n');
	return 0;
}

static int listxattr_(int argc, char **argv)
{
	static char names[65536];
	ssize_t n = listxattr(argv[0], names, sizeof names);

	(void)argc;
	if (n < 0)
		return failed();
	for (char *name = names; name < names + n; name += strlen(name) + 1)
		puts(name);
	return 0;
}

static int removexattr_(int argc, char **argv)
{
	(void)argc;
	return removexattr(argv[0], argv[1]) < 0 ? failed() : 0;
}

static int lock_range(int fd, off_t start, off_t length, short type, int wait)
{
	struct flock lock = { .l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length };

	return fcntl(fd, wait ? F_SETLKW : F_SETLK, &lock);
}

static int lock(int argc, char **argv)
{
	int wait = 0, hold = 0;
	short type = is(argv[3], "shared") ? F_RDLCK : F_WRLCK;
	int fd = open(argv[0], O_RDWR);

	for (int i = 4; i < argc; i++) {
		wait |= is(argv[i], "wait");
		hold |= is(argv[i], "hold");
	}
	if (fd < 0 || lock_range(fd, atoll(argv[1]), atoll(argv[2]), type, wait) < 0)
		return failed();
	puts("locked");
	fflush(stdout);
	if (hold)
		getchar();
	return 0;
}

static int getlock(int argc, char **argv)
{
	struct flock lock = { .l_type = F_WRLCK, .l_start = atoll(argv[1]), .l_len = atoll(argv[2]) };
	int fd = open(argv[0], O_RDWR);

	(void)argc;
	if (fd < 0 || fcntl(fd, F_GETLK, &lock) < 0)
		return failed();
	if (lock.l_type == F_UNLCK)
		puts("free");
	else
		printf("%s %lld %lld\n", lock.l_type == F_RDLCK ? "shared" : "exclusive", (long long)lock.l_start,
		       (long long)lock.l_len);
	return 0;
}

static int locktwice(int argc, char **argv)
{
	int first = open(argv[0], O_RDWR), second = open(argv[0], O_RDWR);

	(void)argc;
	if (first < 0 || second < 0)
		return failed();
	if (lock_range(first, 0, 10, F_WRLCK, 0) < 0 || lock_range(second, 0, 10, F_WRLCK, 0) < 0)
		return failed();
	puts("locked twice");
	return 0;
}

static int rename2(int argc, char **argv)
{
	unsigned flags = is(argv[2], "noreplace") ? 1 : is(argv[2], "exchange") ? 2 : 0;

	(void)argc;
	return syscall(SYS_renameat2, AT_FDCWD, argv[0], AT_FDCWD, argv[1], flags) < 0 ? failed() : 0;
}

static int orphan(int argc, char **argv)
{
	char back[6] = { 0 };
	struct stat st;
	int fd = open(argv[0], O_RDWR | O_CREAT | O_EXCL, 0644);

	(void)argc;
	if (fd < 0 || unlink(argv[0]) < 0 || access(argv[0], F_OK) == 0)
		return failed();
	if (pwrite(fd, "ghost", 5, 0) != 5 || pread(fd, back, 5, 0) != 5)
		return failed();
	puts("written and read");
	fflush(stdout);
	if (fstat(fd, &st) < 0)
		return failed();
	printf("%s %lld\n", back, (long long)st.st_size);
	return close(fd) < 0 ? failed() : 0;
}

static int openread(int argc, char **argv)
{
	int flags = argc > 3 && is(argv[3], "nonblock") ? O_NONBLOCK : 0;
	int fd = open(argv[0], O_RDONLY | flags);
	size_t count = atoll(argv[1]);
	char *bytes = malloc(count);

	if (fd < 0 || !bytes)
		return failed();
	puts("open");
	fflush(stdout);
	for (int i = atoi(argv[2]); i > 0; i--) {
		ssize_t n = read(fd, bytes, count);
		if (n < 0)
			return failed();
		printf("%zd bytes\n", n);
		fwrite(bytes, 1, n, stdout);
		fflush(stdout);
	}
	return 0;
}

static int mmapread(int argc, char **argv)
{
	struct stat st;
	int fd = open(argv[0], O_RDONLY);

	(void)argc;
	if (fd < 0 || fstat(fd, &st) < 0)
		return failed();
	void *bytes = mmap(NULL, st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (bytes == MAP_FAILED)
		return failed();
	return fwrite(bytes, 1, st.st_size, stdout) == (size_t)st.st_size ? 0 : failed();
}

static int pwrite_(int argc, char **argv)
{
	int fd = open(argv[0], O_WRONLY);
	size_t length = strlen(argv[2]);

	(void)argc;
	if (fd < 0 || pwrite(fd, argv[2], length, atoll(argv[1])) != (ssize_t)length)
		return failed();
	return close(fd) < 0 ? failed() : 0;
}

static int fsync_(int argc, char **argv)
{
	int fd = open(argv[0], O_RDWR);

	(void)argc;
	return fd < 0 || fsync(fd) < 0 ? failed() : 0;
}

static int settime(int argc, char **argv)
{
	struct timespec times[2] = { { .tv_nsec = UTIME_OMIT }, { .tv_sec = atoll(argv[1]), .tv_nsec = atol(argv[2]) } };

	(void)argc;
	return utimensat(AT_FDCWD, argv[0], times, 0) < 0 ? failed() : 0;
}

static int gettime(int argc, char **argv)
{
	struct stat st;

	(void)argc;
	if (stat(argv[0], &st) < 0)
		return failed();
	printf("%lld %09ld\n", (long long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
	return 0;
}

static int by_name(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static int readdir_(int argc, char **argv)
{
	size_t count = 0, room = 0, distinct = 0;
	char **names = NULL;
	struct dirent *entry;
	DIR *dir = opendir(argv[0]);

	(void)argc;
	if (!dir)
		return failed();
	for (errno = 0; (entry = readdir(dir)) != NULL; errno = 0) {
		if (is(entry->d_name, ".") || is(entry->d_name, ".."))
			continue;
		if (count == room) {
			room = room ? 2 * room : 1024;
			names = realloc(names, room * sizeof *names);
		}
		names[count++] = strdup(entry->d_name);
	}
	if (errno)
		return failed();
	qsort(names, count, sizeof *names, by_name);
	for (size_t i = 0; i < count; i++)
		distinct += i == 0 || !is(names[i], names[i - 1]);
	printf("%zu %zu\n", count, distinct);
	return 0;
}

/* One direction of the relay; 0 at the end of input. */
static int carry(int from, int to)
{
	static char bytes[256 * 1024];
	ssize_t n = read(from, bytes, sizeof bytes);

	for (ssize_t done = 0, w; done < n; done += w)
		if ((w = write(to, bytes + done, n - done)) <= 0)
			return 0;
	return n > 0;
}

static int relay(int argc, char **argv)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(atoi(argv[0])) };
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	(void)argc;
	to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to) < 0)
		return failed();
	for (;;) {
		struct pollfd polled[2] = { { .fd = 0, .events = POLLIN }, { .fd = fd, .events = POLLIN } };

		if (poll(polled, 2, -1) < 0)
			return failed();
		if (polled[1].revents && !carry(fd, 1))
			return 0;
		if (polled[0].revents && !carry(0, fd))
			return 0;
	}
}

static const struct {
	const char *name;
	int argc;
	int (*call)(int argc, char **argv);
} words[] = {
	{ "setxattr", 3, setxattr_ },	    { "getxattr", 2, getxattr_ }, { "listxattr", 1, listxattr_ },
	{ "removexattr", 2, removexattr_ }, { "lock", 4, lock },	  { "locktwice", 1, locktwice },
	{ "rename2", 3, rename2 },	    { "orphan", 1, orphan },	  { "openread", 3, openread },
	{ "mmapread", 1, mmapread },	    { "pwrite", 3, pwrite_ },	  { "readdir", 1, readdir_ },
	{ "getlock", 3, getlock },	    { "fsync", 1, fsync_ },	  { "settime", 3, settime },
	{ "gettime", 1, gettime },	    { "relay", 1, relay },
};

int main(int argc, char **argv)
{
	if (getpid() == 1)
		return guest_init();
	for (size_t i = 0; argc > 1 && i < sizeof words / sizeof *words; i++)
		if (is(argv[1], words[i].name) && argc - 2 >= words[i].argc)
			return words[i].call(argc - 2, argv + 2);
	fprintf(stderr, "usage: see the top of probe.c\n");
	return 2;
}
