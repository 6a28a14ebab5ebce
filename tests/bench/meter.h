/* What a measurement stands on: a clock, a histogram of latencies, the CPU time
 * and memory of processes, a dialled connection. Failing any of these ends the run.
 */
#ifndef WARREN_BENCH_METER_H
#define WARREN_BENCH_METER_H

#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static uint64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Latencies: 64 buckets for each power of two, so a percentile is within 2 %. */
static uint64_t histogram[64 * 64];

static void record_latency(uint64_t ns)
{
	unsigned power = ns < 64 ? 0 : 63 - (unsigned)__builtin_clzll(ns) - 5;
	histogram[power ? power * 64 + ((ns >> (power - 1)) & 63) : ns]++;
}

static double percentile_us(double share, uint64_t ops)
{
	uint64_t rank = (uint64_t)(share * (double)ops), seen = 0;
	for (unsigned i = 0; i < 64 * 64; i++) {
		seen += histogram[i];
		if (histogram[i] && seen >= rank) {
			unsigned power = i / 64;
			double ns = power ? (64.5 + i % 64) * (double)(1ull << (power - 1)) : i;
			return ns / 1e3;
		}
	}
	return 0;
}

static double own_cpu(void)
{
	struct rusage use;
	getrusage(RUSAGE_SELF, &use);
	return (double)(use.ru_utime.tv_sec + use.ru_stime.tv_sec)
		+ (double)(use.ru_utime.tv_usec + use.ru_stime.tv_usec) / 1e6;
}

static double process_cpu(long pid)
{
	char path[64], line[1024];
	unsigned long user = 0, kernel = 0;
	if (!pid)
		return 0;
	snprintf(path, sizeof path, "/proc/%ld/stat", pid);
	FILE *f = fopen(path, "r");
	if (!f || !fgets(line, sizeof line, f))
		errx(1, "%s: no such server", path);
	fclose(f);
	char *after_name = strrchr(line, ')');
	if (!after_name
	    || sscanf(after_name + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &kernel) != 2)
		errx(1, "%s: not understood", path);
	return (double)(user + kernel) / (double)sysconf(_SC_CLK_TCK);
}

static long resident_kib(long pid)
{
	char path[64], line[256];
	long kib = -1;
	snprintf(path, sizeof path, "/proc/%ld/smaps_rollup", pid);
	FILE *f = fopen(path, "r");
	while (f && kib < 0 && fgets(line, sizeof line, f))
		sscanf(line, "Rss: %ld kB", &kib);
	if (f)
		fclose(f);
	if (kib < 0)
		errx(1, "%s: no Rss", path);
	return kib;
}

static int dial(const char *addr)
{
	char text[256];
	int fd = -1;
	snprintf(text, sizeof text, "%s", addr);
	char *rest, *kind = strtok_r(text, "!", &rest), *host = strtok_r(NULL, "!", &rest);
	char *port = strtok_r(NULL, "!", &rest);
	if (kind && host && !port && !strcmp(kind, "unix")) {
		struct sockaddr_un to = { .sun_family = AF_UNIX };
		snprintf(to.sun_path, sizeof to.sun_path, "%s", host);
		fd = socket(AF_UNIX, SOCK_STREAM, 0);
		if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to))
			errx(1, "%s: %s", addr, strerror(errno));
	} else if (kind && host && port && (!strcmp(kind, "tcp") || !strcmp(kind, "tls"))) {
		struct addrinfo want = { .ai_socktype = SOCK_STREAM }, *to;
		int bad = getaddrinfo(host, port, &want, &to), on = 1;
		if (bad)
			errx(1, "%s: %s", addr, gai_strerror(bad));
		fd = socket(to->ai_family, SOCK_STREAM, 0);
		if (fd < 0 || connect(fd, to->ai_addr, to->ai_addrlen))
			errx(1, "%s: %s", addr, strerror(errno));
		freeaddrinfo(to);
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
	} else {
		errx(1, "%s: want tcp!HOST!PORT, tls!HOST!PORT or unix!PATH", addr);
	}
	return fd;
}

#endif
