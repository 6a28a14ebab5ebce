/* canned: answer 9P requests with well-formed replies that cost nothing to make.
 *
 *     canned [-x LIE] PORT
 *
 * It serves no files. Against it the load generator shows its own ceiling, and,
 * with -x, that it notices a wrong reply: one reply in a hundred is then given
 * the wrong type, the wrong tag, a short body, wrong data, or an error; or it is
 * never sent (drop), or the connection is closed instead (close).
 * It speaks both dialects on 127.0.0.1:PORT, every name is the one file of
 * 64 MiB, and it ends when killed.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "wire.h"

enum { MAX_MSIZE = 1 << 20, FILE_SIZE = 64 << 20, HELD = 8192, LIE_EVERY = 100 };

struct peer {
	int fd;
	uint32_t held, skip;       /* bytes of an incomplete frame; bytes of a Twrite still to throw away */
	uint8_t frame[HELD];
};

static const char *lie = "";
static unsigned long replies;
static uint8_t in[2 * MAX_MSIZE], out[1 << 16], data[MAX_MSIZE];
static uint32_t out_length;

static bool send_all(int fd, struct iovec *parts, int count)
{
	while (count) {
		ssize_t n = writev(fd, parts, count);
		if (n <= 0)
			return false;
		for (; count && (size_t)n >= parts->iov_len; parts++, count--)
			n -= (ssize_t)parts->iov_len;
		if (count)
			*parts = (struct iovec){ (uint8_t *)parts->iov_base + n, parts->iov_len - (size_t)n };
	}
	return true;
}

static bool send_out(int fd, const uint8_t *tail, uint32_t tail_length)
{
	struct iovec parts[2] = { { out, out_length }, { (void *)tail, tail_length } };
	out_length = 0;
	return send_all(fd, parts, tail_length ? 2 : parts[0].iov_len ? 1 : 0);
}

static uint8_t *put_qid(uint8_t *p) { return put64(put32(put8(p, 0), 0), 42); }

/* Append the reply to one request; false when the connection should end. */
static bool answer(int fd, const uint8_t *request)
{
	uint8_t *reply = out + out_length, type = request[4];
	const uint8_t *body = request + HEADER;
	uint8_t *p = put_header(reply, type + 1, get16(request + 5));
	uint32_t count = 0;
	bool lying = *lie && ++replies % LIE_EVERY == 0;

	switch (type) {
	case Tversion:
		p = put32(p, get32(body) < MAX_MSIZE ? get32(body) : MAX_MSIZE);
		p = putstr(p, (const char *)body + 6, get16(body + 4));
		break;
	case Tattach:
		p = put_qid(p);
		break;
	case Twalk:
		p = put16(p, get16(body + 8));
		for (int i = 0; i < get16(body + 8); i++)
			p = put_qid(p);
		break;
	case Topen:
	case Tlopen:
		p = put32(put_qid(p), 0);
		break;
	case Tgetattr:
		p = put_qid(put64(p, 0x7ff));
		memset(p, 0, GETATTR_REPLY);
		put64(p + 28, FILE_SIZE);
		p = reply + GETATTR_REPLY;
		break;
	case Tstat:
		p = put_qid(put32(put16(put16(put16(p, 49), 47), 0), 0));
		memset(p, 0, 28);
		put64(p + 12, FILE_SIZE);
		p += 28;
		break;
	case Tread:
		count = get32(body + 12);
		put_marks(data, get64(body + 4) + (lying && !strcmp(lie, "data")), count);
		p = put32(p, count);
		break;
	case Twrite:
		p = put32(p, get32(body + 12));
		break;
	case Tclunk:
		break;
	default:
		return false;
	}
	if (lying && !strcmp(lie, "close"))
		return false;
	if (lying && !strcmp(lie, "drop"))
		return true;
	if (lying && !strcmp(lie, "type"))
		reply[4] += 2;
	if (lying && !strcmp(lie, "tag"))
		reply[5] ^= 0x80;
	if (lying && !strcmp(lie, "short") && count)
		put32(reply + HEADER, --count);
	else if (lying && !strcmp(lie, "short") && p > reply + HEADER)
		p--;
	if (lying && !strcmp(lie, "error")) {
		reply[4] = Rlerror;
		p = put32(reply + HEADER, EIO);
		count = 0;
	}
	put32(reply, (uint32_t)(p - reply) + count);
	out_length = (uint32_t)(p - out);
	return (!count && out_length < sizeof out / 2) || send_out(fd, data, count);
}

static bool serve(struct peer *peer)
{
	memcpy(in, peer->frame, peer->held);
	ssize_t n = recv(peer->fd, in + peer->held, sizeof in - peer->held, 0);
	if (n <= 0)
		return false;
	uint32_t at = 0, end = peer->held + (uint32_t)n;
	for (;;) {
		uint32_t skipped = peer->skip < end - at ? peer->skip : end - at;
		at += skipped;
		peer->skip -= skipped;
		if (end - at < HEADER)
			break;
		uint32_t size = get32(in + at), need = in[at + 4] == Twrite ? WRITE_OVERHEAD : size;
		if (size < HEADER || need > HELD)
			return false;
		if (end - at < need)
			break;
		if (!answer(peer->fd, in + at))
			return false;
		at += need;
		peer->skip = size - need;
	}
	peer->held = end - at;
	memcpy(peer->frame, in + at, peer->held);
	return send_out(peer->fd, NULL, 0);
}

int main(int argc, char **argv)
{
	int on = 1, letter;
	while ((letter = getopt(argc, argv, "x:")) != -1)
		lie = letter == 'x' ? optarg : "";
	if (optind + 1 != argc)
		errx(1, "usage: canned [-x type|tag|short|data|error|drop|close] PORT");

	struct sockaddr_in here = {
		.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
		.sin_port = htons((uint16_t)atoi(argv[optind])),
	};
	int listener = socket(AF_INET, SOCK_STREAM, 0), poller = epoll_create1(0);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	if (bind(listener, (struct sockaddr *)&here, sizeof here) || listen(listener, 1024))
		errx(1, "port %s: %s", argv[optind], strerror(errno));
	struct epoll_event event = { .events = EPOLLIN };
	epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
	while (epoll_wait(poller, &event, 1, -1) >= 0) {
		struct peer *peer = event.data.ptr;
		if (!peer) {
			int fd = accept(listener, NULL, NULL);
			if (fd < 0 || !(peer = calloc(1, sizeof *peer)))
				continue;
			setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
			peer->fd = fd;
			event = (struct epoll_event){ .events = EPOLLIN, .data.ptr = peer };
			epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
		} else if (!serve(peer)) {
			out_length = 0;
			close(peer->fd);
			free(peer);
		}
	}
	return 0;
}
