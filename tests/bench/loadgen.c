/* loadgen: put a known 9P load on a server and say what came back.
 *
 *     loadgen [-a ADDR] [-n ANAME] [-V VERSION] [-f FILE] [-m MSIZE] [-k]
 *             [-t SECONDS] [-w SECONDS] [-p PID]... [-i DIR] [-T DIR -S NAME]
 *             SCENARIO [NUMBER...]
 *
 *     getattr TAGS      Tgetattr (Tstat in 9P2000) on FILE, TAGS outstanding
 *     serial            the same with one
 *     orc TAGS          TAGS chains of walk, open, read 4 KiB, clunk, each step
 *                       waiting for the one before
 *     read SIZE TAGS    sequential reads of SIZE over FILE, around and around
 *     write SIZE TAGS   the same with writes
 *     conns N           getattr on N connections, one outstanding on each
 *     idle N WARM       attach WARM connections, then N more; report what each
 *                       of the N added to the resident memory of PID
 *     shakes N          connect, agree on a version, attach, hang up; N at once
 *     attach            attach, on a connection that is there already
 *
 * ADDR is tcp!HOST!PORT, tls!HOST!PORT or unix!PATH; VERSION is 9P2000.L or 9P2000. FILE is a
 * path below ANAME. -k says that FILE is marked (see wire.h), so that the data
 * of reads is checked. -w runs before the measured -t seconds. -p names the
 * server's process, for its CPU time and memory; its CPU time is that of all
 * when there are several.
 *
 * -i is the identity for TLS: a folder with cert.pem, key.pem and ca.pem. -T is
 * a token that every attach presents to the server called NAME: a folder with
 * its chain and holder.pem, its last key. Both need the program that was
 * compiled with -DWITH_TLS, loadgen-tls.
 *
 * SIZE shrinks to what the negotiated msize carries, which is msize - 24 as v9fs
 * reckons it; the size used is in the answer. An operation counts only when every reply of it was
 * checked: type, tag, length, identity, data. Anything else is an error, and
 * so is a request that nobody answered. The answer is one JSON object on one
 * line. Exit status: 0 measured (errors or not), 1 could not, 2 usage.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <sys/epoll.h>
#include <sys/uio.h>

#include "meter.h"
#include "wire.h"

#ifdef WITH_TLS
#include "secure.h"
#else
typedef void SSL;
#endif

enum { ROOT_FID = 0, FILE_FID = 1, TOKEN_FID = 2, CHAIN_FID = 16 };
enum { MAX_TAGS = 1024, MAX_NAMES = 16, BATCH = 256, MAX_PIDS = 4 };

/* One outstanding operation; its tag is its index in the connection. */
struct slot {
	uint16_t tag;
	uint8_t awaited;           /* type of the reply we wait for, 0 when at rest */
	bool failed;
	uint64_t started, offset;
	uint8_t *frame;
	uint32_t length;
};

struct conn {
	int fd;
	SSL *tls;                  /* NULL on a plain socket */
	bool wants_out;
	struct slot *slots;
	uint16_t *queue;           /* ring of slots whose frames are not sent yet */
	uint32_t queue_at, queued, sent;   /* sent: bytes of the first frame already out */
	uint8_t *in;
	uint32_t in_size, start, end, msize;
	uint8_t qid_path[8];
	uint64_t next_offset;
};

static struct {
	const char *addr, *aname, *version, *file, *scenario, *identity, *token, *server;
	double seconds, warm_up;
	uint32_t msize, size, tags, conns, warm_conns;
	long pids[MAX_PIDS];
	uint32_t pid_count;
	bool marked, plain;
	uint8_t walk_names[4096];
	uint32_t walk_length;
	uint16_t walk_count;
} opt = {
	.addr = "tcp!127.0.0.1!5640", .aname = "", .version = "9P2000.L", .file = "data",
	.seconds = 1.5, .warm_up = 0.2, .msize = 1 << 20, .tags = 1, .conns = 1,
};

static uint64_t file_size;
static uint64_t ops, bytes, errors;
static char first_error[200];
static bool measuring, stopping;
static int poller;
static uint32_t alive;

static enum { GETATTR, ORC, READ, WRITE, IDLE, SHAKES, ATTACH } work;

__attribute__((format(printf, 1, 2)))
static void count_error(const char *format, ...)
{
	if (errors++)
		return;
	va_list args;
	va_start(args, format);
	vsnprintf(first_error, sizeof first_error, format, args);
	va_end(args);
	for (char *c = first_error; *c; c++)
		if (*c < ' ' || *c > '~' || *c == '"' || *c == '\\')
			*c = '?';
}

static void *allocate(size_t count, size_t size)
{
	void *memory = calloc(count ? count : 1, size);
	if (!memory)
		errx(1, "out of memory");
	return memory;
}

/* Describe a refusal in the dialect it came in. */
static const char *refusal(uint8_t type, const uint8_t *body, uint32_t length)
{
	static char text[160];
	if (type == Rlerror && length >= 4)
		snprintf(text, sizeof text, "%s", strerror((int)get32(body)));
	else if (type == Rerror && length >= 2 && get16(body) <= length - 2)
		snprintf(text, sizeof text, "%.*s", get16(body), body + 2);
	else
		snprintf(text, sizeof text, "reply of type %u", type);
	return text;
}

static ssize_t transport_receive(struct conn *c, uint8_t *into, uint32_t room)
{
#ifdef WITH_TLS
	if (c->tls)
		return tls_receive(c->tls, into, room);
#endif
	return recv(c->fd, into, room, 0);
}

/* Several buffers, or as much of them as is taken at a time: under TLS one record. */
static ssize_t transport_send(struct conn *c, struct iovec *parts, uint32_t count)
{
#ifdef WITH_TLS
	if (c->tls) {
		/* A record that was refused is offered again with the same beginning, as TLS demands. */
		uint8_t record[RECORD];
		size_t length = 0;
		for (uint32_t i = 0; i < count && length < RECORD; i++) {
			size_t n = parts[i].iov_len < RECORD - length ? parts[i].iov_len : RECORD - length;
			memcpy(record + length, parts[i].iov_base, n);
			length += n;
		}
		return tls_send(c->tls, record, length);
	}
#endif
	struct msghdr message = { .msg_iov = parts, .msg_iovlen = count };
	return sendmsg(c->fd, &message, MSG_NOSIGNAL);
}

static void transport_open(struct conn *c)
{
	struct timeval patience = { .tv_sec = 10 };
	c->fd = dial(opt.addr);
	setsockopt(c->fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
#ifdef WITH_TLS
	c->tls = tls_context ? tls_dial(c->fd) : NULL;
#endif
}

static void transport_close(struct conn *c)
{
#ifdef WITH_TLS
	SSL_free(c->tls);
	c->tls = NULL;
#endif
	close(c->fd);
	c->fd = -1;
}

/* One request and its reply, blocking: for setting up, where a failure ends the run. */
static const uint8_t *ask(struct conn *c, uint8_t *frame, uint8_t *end, uint32_t least, const char *what)
{
	uint32_t length = seal(frame, end), have = 0, want = HEADER;
	for (uint32_t out = 0; out < length;) {
		struct iovec rest = { frame + out, length - out };
		ssize_t n = transport_send(c, &rest, 1);
		if (n <= 0)
			errx(1, "%s: %s", what, strerror(errno));
		out += (uint32_t)n;
	}
	while (have < want) {
		ssize_t n = transport_receive(c, c->in + have, want - have);
		if (n <= 0)
			errx(1, "%s: %s", what, n ? strerror(errno) : "the server hung up");
		have += (uint32_t)n;
		if (have == HEADER && ((want = get32(c->in)) < HEADER || want > c->in_size))
			errx(1, "%s: a reply of %u bytes", what, want);
	}
	if (c->in[4] != frame[4] + 1)
		errx(1, "%s: %s", what, refusal(c->in[4], c->in + HEADER, want - HEADER));
	if (memcmp(c->in + 5, frame + 5, 2) || want < HEADER + least)
		errx(1, "%s: a wrong tag or a short reply", what);
	return c->in + HEADER;
}

static uint8_t *put_getattr(uint8_t *frame, uint16_t tag)
{
	if (opt.plain)
		return put32(put_header(frame, Tstat, tag), FILE_FID);
	return put64(put32(put_header(frame, Tgetattr, tag), FILE_FID), 0x7ff);
}

static uint8_t *put_walk(uint8_t *frame, uint16_t tag, uint32_t newfid)
{
	uint8_t *p = put16(put32(put32(put_header(frame, Twalk, tag), ROOT_FID), newfid), opt.walk_count);
	memcpy(p, opt.walk_names, opt.walk_length);
	return p + opt.walk_length;
}

static uint8_t *put_open(uint8_t *frame, uint16_t tag, uint32_t fid, uint8_t mode)
{
	if (opt.plain)
		return put8(put32(put_header(frame, Topen, tag), fid), mode);
	return put32(put32(put_header(frame, Tlopen, tag), fid), mode);
}

static void agree(struct conn *c)
{
	uint8_t frame[128];
	size_t length = strlen(opt.version);
	uint8_t *p = put32(put_header(frame, Tversion, NOTAG), opt.msize);
	const uint8_t *reply = ask(c, frame, putstr(p, opt.version, length), 6 + (uint32_t)length, "version");
	if (get16(reply + 4) != length || memcmp(reply + 6, opt.version, length))
		errx(1, "version: the server does not speak %s", opt.version);
	if (get32(reply) > opt.msize || get32(reply) < BLOCK)
		errx(1, "version: an msize of %u", get32(reply));
	c->msize = get32(reply);
}

static uint8_t *put_names(uint8_t *p)
{
	p = putstr(putstr(p, "bench", 5), opt.aname, strlen(opt.aname));
	return opt.plain ? p : put32(p, getuid());
}

/* Show the token; the fid that the attach is to name. */
static uint32_t present(struct conn *c)
{
#ifdef WITH_TLS
	uint8_t frame[8192], nonce[NONCE];
	if (!opt.token)
		return NOFID;
	ask(c, frame, put_names(put32(put_header(frame, Tauth, 0), TOKEN_FID)), QID, "auth");
	uint8_t *p = put64(put32(put_header(frame, Tread, 0), TOKEN_FID), 0);
	memcpy(nonce, ask(c, frame, put32(p, NONCE), 4 + NONCE, "nonce") + 4, NONCE);
	uint32_t said = (uint32_t)token.length + PROOF;
	p = put32(put64(put32(put_header(frame, Twrite, 0), TOKEN_FID), 0), said);
	memcpy(p, token.chain, token.length);
	token_prove(nonce, p + token.length);
	if (get32(ask(c, frame, p + said, 4, "proof")) != said)
		errx(1, "proof: a short count");
	return TOKEN_FID;
#else
	(void)c;
	return NOFID;
#endif
}

static void attach(struct conn *c)
{
	uint8_t frame[8192];
	uint32_t shown = present(c);
	uint8_t *p = put32(put32(put_header(frame, Tattach, 0), ROOT_FID), shown);
	ask(c, frame, put_names(p), QID, "attach");
}

/* Connect, agree on a version, attach, walk to FILE, learn its identity and size. */
static void set_up(struct conn *c)
{
	uint8_t frame[8192];
	const uint8_t *reply;

	transport_open(c);
	agree(c);
	opt.msize = c->msize;
	attach(c);
	reply = ask(c, frame, put_walk(frame, 0, FILE_FID), 2, "walk");
	if (get16(reply) != opt.walk_count)
		errx(1, "walk: %s does not exist", opt.file);
	reply = ask(c, frame, put_getattr(frame, 0), opt.plain ? 43 : GETATTR_REPLY - HEADER, "getattr");
	memcpy(c->qid_path, reply + (opt.plain ? 10 : 8) + 5, 8);
	file_size = get64(reply + (opt.plain ? 35 : 49));
	if (work == READ || work == WRITE)
		ask(c, frame, put_open(frame, 0, FILE_FID, work == READ ? O_RDONLY : O_RDWR), QID + 4, "open");
}

static void make_slots(struct conn *c)
{
	uint32_t room = 64 + opt.walk_length + (work == WRITE ? opt.size : 0);
	c->slots = allocate(opt.tags, sizeof *c->slots);
	c->queue = allocate(opt.tags, sizeof *c->queue);
	for (uint32_t i = 0; i < opt.tags; i++) {
		c->slots[i].tag = (uint16_t)i;
		c->slots[i].frame = allocate(room, 1);
	}
}

static void issue(struct conn *c, struct slot *s, uint8_t *end)
{
	s->length = seal(s->frame, end);
	s->awaited = s->frame[4] + 1;
	c->queue[(c->queue_at + c->queued++) % opt.tags] = s->tag;
}

static uint8_t *put_read(struct slot *s, uint32_t fid, uint32_t count)
{
	return put32(put64(put32(put_header(s->frame, Tread, s->tag), fid), s->offset), count);
}

static void begin(struct conn *c, struct slot *s, uint64_t at)
{
	s->started = at;
	s->failed = false;
	s->offset = 0;
	if (work == READ || work == WRITE) {
		if (c->next_offset + opt.size > file_size)
			c->next_offset = 0;
		s->offset = c->next_offset;
		c->next_offset += opt.size;
	}
	switch (work) {
	case ORC:
		issue(c, s, put_walk(s->frame, s->tag, CHAIN_FID + s->tag));
		break;
	case READ:
		issue(c, s, put_read(s, FILE_FID, opt.size));
		break;
	case WRITE: {
		uint8_t *p = put32(put64(put32(put_header(s->frame, Twrite, s->tag), FILE_FID), s->offset), opt.size);
		put_marks(p, s->offset, opt.size);
		issue(c, s, p + opt.size);
		break;
	}
	default:
		issue(c, s, put_getattr(s->frame, s->tag));
	}
}

/* Check the first and the last mark; all of them would cost more than receiving. */
static bool good_data(const struct slot *s, const uint8_t *data, uint32_t count)
{
	uint32_t first = (uint32_t)(-s->offset % BLOCK);
	if (!opt.marked || first + 8 > count)
		return true;
	uint32_t last = first + (count - first - 8) / BLOCK * BLOCK;
	return get64(data + first) == s->offset + first && get64(data + last) == s->offset + last;
}

/* Is this the whole of the right reply? NULL if so, else what is wrong with it. */
static const char *fault(const struct conn *c, const struct slot *s, const uint8_t *body, uint32_t length)
{
	uint32_t count = work == ORC ? BLOCK : opt.size;
	switch (s->awaited) {
	case Tgetattr + 1:
		if (length != GETATTR_REPLY - HEADER)
			return "getattr: short or long reply";
		return memcmp(body + 13, c->qid_path, 8) || get64(body + 49) != file_size ? "getattr: another file" : NULL;
	case Tstat + 1:
		if (length < 43 || get16(body) != length - 2)
			return "stat: short or long reply";
		return memcmp(body + 15, c->qid_path, 8) || get64(body + 35) != file_size ? "stat: another file" : NULL;
	case Twalk + 1:
		if (length < 2 || get16(body) != opt.walk_count || length != 2u + opt.walk_count * QID)
			return "walk: not all the way";
		return memcmp(body + length - 8, c->qid_path, 8) ? "walk: another file" : NULL;
	case Tlopen + 1:
	case Topen + 1:
		return length != QID + 4 ? "open: short or long reply" : NULL;
	case Tread + 1:
		if (length < 4 || get32(body) != count || length != 4 + count)
			return "read: short or long data";
		return good_data(s, body + 4, count) ? NULL : "read: wrong data";
	case Twrite + 1:
		return length != 4 || get32(body) != count ? "write: short count" : NULL;
	default:
		return length ? "clunk: a body" : NULL;
	}
}

/* Send the next step of a chain; false when the operation is over. */
static bool next_step(struct conn *c, struct slot *s)
{
	uint32_t fid = CHAIN_FID + s->tag;
	if (work != ORC || s->awaited == Tclunk + 1 || (s->failed && s->awaited == Twalk + 1))
		return false;
	if (s->awaited == Twalk + 1)
		issue(c, s, put_open(s->frame, s->tag, fid, O_RDONLY));
	else if (!s->failed && (s->awaited == Tlopen + 1 || s->awaited == Topen + 1))
		issue(c, s, put_read(s, fid, BLOCK));
	else
		issue(c, s, put32(put_header(s->frame, Tclunk, s->tag), fid));
	return true;
}

static void take_reply(struct conn *c, const uint8_t *frame, uint32_t size, uint64_t at)
{
	uint16_t tag = get16(frame + 5);
	struct slot *s = tag < opt.tags ? &c->slots[tag] : NULL;
	if (!s || !s->awaited) {
		count_error("a reply of type %u to tag %u, which asked nothing", frame[4], tag);
		return;
	}
	const char *wrong = NULL;
	if (frame[4] != s->awaited)
		wrong = refusal(frame[4], frame + HEADER, size - HEADER);
	else
		wrong = fault(c, s, frame + HEADER, size - HEADER);
	if (wrong) {
		count_error("awaiting type %u: %s", s->awaited, wrong);
		s->failed = true;
	}
	if (next_step(c, s))
		return;
	if (measuring && !s->failed) {
		ops++;
		bytes += work == READ || work == WRITE ? opt.size : work == ORC ? BLOCK : 0;
		record_latency(at - s->started);
	}
	s->awaited = 0;
	if (!stopping)
		begin(c, s, at);
}

static void lose(struct conn *c, const char *why)
{
	count_error("connection lost: %s", why);
	for (uint32_t i = 0; i < opt.tags; i++)
		errors += c->slots[i].awaited != 0;
	transport_close(c);
	alive--;
}

static void flush_out(struct conn *c)
{
	while (c->queued) {
		struct iovec parts[BATCH];
		uint32_t n = c->queued < BATCH ? c->queued : BATCH;
		for (uint32_t i = 0; i < n; i++) {
			struct slot *s = &c->slots[c->queue[(c->queue_at + i) % opt.tags]];
			parts[i] = (struct iovec){ s->frame, s->length };
		}
		parts[0].iov_base = (uint8_t *)parts[0].iov_base + c->sent;
		parts[0].iov_len -= c->sent;
		ssize_t out = transport_send(c, parts, n);
		if (out < 0 && errno != EAGAIN) {
			lose(c, strerror(errno));
			return;
		}
		if (out < 0)
			break;
		for (uint32_t i = 0; i < n && (size_t)out >= parts[i].iov_len; i++) {
			out -= (ssize_t)parts[i].iov_len;
			c->queue_at = (c->queue_at + 1) % opt.tags;
			c->queued--;
			c->sent = 0;
		}
		c->sent += (uint32_t)out;
	}
	if (c->wants_out != (c->queued > 0)) {
		c->wants_out = c->queued > 0;
		struct epoll_event e = { .events = EPOLLIN | (c->wants_out ? EPOLLOUT : 0), .data.ptr = c };
		epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &e);
	}
}

/* Take what has come; true if it filled the room, so that more may lie where epoll does not see it. */
static bool take_in(struct conn *c)
{
	bool more = true;
	uint32_t before = c->end;
	while (more && c->end < c->in_size) {
		ssize_t n = transport_receive(c, c->in + c->end, c->in_size - c->end);
		if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
			more = false;
		} else if (n <= 0) {
			lose(c, n ? strerror(errno) : "the server hung up");
			return false;
		} else {
			c->end += (uint32_t)n;
			more = c->tls != NULL;
		}
	}
	if (c->end == before)
		return false;
	uint64_t at = now();
	uint32_t size = HEADER;
	while (c->end - c->start >= HEADER) {
		size = get32(c->in + c->start);
		if (size < HEADER || size > c->in_size) {
			lose(c, "a frame of impossible size");
			return false;
		}
		if (c->end - c->start < size)
			break;
		take_reply(c, c->in + c->start, size, at);
		c->start += size;
		size = HEADER;
	}
	if (c->start == c->end) {
		c->start = c->end = 0;
	} else if (c->start + size > c->in_size) {
		memmove(c->in, c->in + c->start, c->end - c->start);
		c->end -= c->start;
		c->start = 0;
	}
	flush_out(c);
	return more && c->fd >= 0;
}

static void receive(struct conn *c)
{
	while (take_in(c))
		continue;
}

/* Turn the loop until `until`, or until nobody is outstanding when we are stopping. */
static void turn(struct conn *conns, uint64_t until)
{
	struct epoll_event events[BATCH];
	for (uint64_t at = now(); at < until && alive; at = now()) {
		int n = epoll_wait(poller, events, BATCH, (int)((until - at) / 1000000) + 1);
		for (int i = 0; i < n; i++) {
			struct conn *c = events[i].data.ptr;
			if (events[i].events & EPOLLOUT)
				flush_out(c);
			if (c->fd >= 0 && events[i].events & ~(uint32_t)EPOLLOUT)
				receive(c);
		}
		uint64_t outstanding = 0;
		for (uint32_t i = 0; stopping && i < opt.conns; i++)
			for (uint32_t t = 0; conns[i].fd >= 0 && t < opt.tags; t++)
				outstanding += conns[i].slots[t].awaited != 0;
		if (stopping && !outstanding)
			return;
	}
}

static double servers_cpu(void)
{
	double sum = 0;
	for (uint32_t i = 0; i < opt.pid_count; i++)
		sum += process_cpu(opt.pids[i]);
	return sum;
}

static void report(double seconds, double own, double server)
{
	printf("{\"scenario\": \"%s\", \"version\": \"%s\", \"msize\": %u, \"size\": %u, \"tags\": %u, "
	       "\"connections\": %u, \"ops\": %llu, \"seconds\": %.3f, \"ops_per_s\": %.1f, \"mb_per_s\": %.1f, "
	       "\"p50_us\": %.1f, \"p99_us\": %.1f, \"errors\": %llu, \"first_error\": \"%s\", \"cpu_s\": %.3f, "
	       "\"server_cpu_s\": %.2f}\n",
	       opt.scenario, opt.version, opt.msize, opt.size, opt.tags, opt.conns, (unsigned long long)ops, seconds,
	       (double)ops / seconds, (double)bytes / seconds / 1e6, percentile_us(0.5, ops), percentile_us(0.99, ops),
	       (unsigned long long)errors, first_error, own, server);
}

static uint64_t after(double seconds) { return now() + (uint64_t)(seconds * 1e9); }

static void measure(struct conn *conns)
{
	poller = epoll_create1(EPOLL_CLOEXEC);
	alive = opt.conns;
	for (uint32_t i = 0; i < opt.conns; i++) {
		struct conn *c = &conns[i];
		struct epoll_event e = { .events = EPOLLIN, .data.ptr = c };
		make_slots(c);
		fcntl(c->fd, F_SETFL, O_NONBLOCK);
		if (epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &e))
			errx(1, "epoll: %s", strerror(errno));
	}
	for (uint32_t i = 0; i < opt.conns; i++) {
		for (uint32_t t = 0; t < opt.tags; t++)
			begin(&conns[i], &conns[i].slots[t], now());
		flush_out(&conns[i]);
	}
	turn(conns, after(opt.warm_up));

	double own = own_cpu(), server = servers_cpu();
	uint64_t began = now();
	measuring = true;
	turn(conns, after(opt.seconds));
	measuring = false;
	double seconds = (double)(now() - began) / 1e9;
	own = own_cpu() - own;
	server = servers_cpu() - server;

	stopping = true;
	turn(conns, after(2));
	for (uint32_t i = 0; i < opt.conns; i++)
		for (uint32_t t = 0; conns[i].fd >= 0 && t < opt.tags; t++)
			if (conns[i].slots[t].awaited)
				count_error("tag %u was never answered", t);
	report(seconds, own, server);
}

/* Work that is begun anew each time and done while we wait for it, in OPT.CONNS threads. */
static pthread_mutex_t counting = PTHREAD_MUTEX_INITIALIZER;
static uint64_t counts_from, counts_until;

static void *repeat(void *argument)
{
	struct conn *c = argument;
	for (uint64_t began = now(); began < counts_until; began = now()) {
		if (work == SHAKES)
			transport_open(c);
		agree(c);
		if (work == ATTACH)
			began = now();
		attach(c);
		uint64_t ended = now();
		if (work == SHAKES)
			transport_close(c);
		if (ended < counts_from || ended > counts_until)
			continue;
		pthread_mutex_lock(&counting);
		ops++;
		record_latency(ended - began);
		pthread_mutex_unlock(&counting);
	}
	return NULL;
}

static void measure_repeated(struct conn *conns)
{
	pthread_t threads[MAX_TAGS];
	for (uint32_t i = 0; work == ATTACH && i < opt.conns; i++)
		transport_open(&conns[i]);
	counts_from = after(opt.warm_up);
	counts_until = after(opt.warm_up + opt.seconds);
	for (uint32_t i = 0; i < opt.conns; i++)
		if (pthread_create(&threads[i], NULL, repeat, &conns[i]))
			errx(1, "no thread");
	usleep((useconds_t)(opt.warm_up * 1e6));
	double own = own_cpu(), server = servers_cpu();
	for (uint32_t i = 0; i < opt.conns; i++)
		pthread_join(threads[i], NULL);
	opt.msize = conns[0].msize;
	report(opt.seconds, own_cpu() - own, servers_cpu() - server);
}

static void measure_idle(struct conn *conns)
{
	uint8_t frame[64];
	uint32_t total = opt.warm_conns + opt.conns;
	long before = 0;
	if (!opt.pid_count)
		errx(1, "idle: -p PID says whose memory to read");
	for (uint32_t i = 0; i < total; i++) {
		if (i == opt.warm_conns) {
			usleep(500000);
			before = resident_kib(opt.pids[0]);
		}
		set_up(&conns[i]);
	}
	usleep(500000);
	long after_all = resident_kib(opt.pids[0]);
	for (uint32_t i = 0; i < total; i++)
		ask(&conns[i], frame, put_getattr(frame, 0), 2, "an idle connection");
	printf("{\"scenario\": \"idle\", \"version\": \"%s\", \"msize\": %u, \"connections\": %u, \"errors\": 0, "
	       "\"first_error\": \"\", \"rss_before_kib\": %ld, \"rss_after_kib\": %ld, \"kib_per_connection\": %.2f}\n",
	       opt.version, opt.msize, opt.conns, before, after_all, (double)(after_all - before) / opt.conns);
}

static uint32_t number(char **words, int index, uint32_t most)
{
	char *end = "";
	unsigned long value = words[index] ? strtoul(words[index], &end, 10) : 0;
	if (*end == 'K' || *end == 'M')
		value <<= *end++ == 'K' ? 10 : 20;
	if (!value || *end || value > most) {
		fprintf(stderr, "loadgen: argument %d of %s: want a number from 1 to %u\n", index, words[0], most);
		exit(2);
	}
	return (uint32_t)value;
}

static void usage(void)
{
	fputs("usage: loadgen [-a ADDR] [-n ANAME] [-V VERSION] [-f FILE] [-m MSIZE] [-k] [-t SECONDS] [-w SECONDS]\n"
	      "               [-p PID]... [-i DIR] [-T DIR -S NAME] getattr TAGS | serial | orc TAGS | read SIZE TAGS |\n"
	      "               write SIZE TAGS | conns N | idle N WARM | shakes N | attach\n", stderr);
	exit(2);
}

static void parse(int argc, char **argv)
{
	int letter;
	while ((letter = getopt(argc, argv, "+a:n:V:f:m:kt:w:p:i:T:S:")) != -1) {
		switch (letter) {
		case 'a': opt.addr = optarg; break;
		case 'n': opt.aname = optarg; break;
		case 'V': opt.version = optarg; break;
		case 'f': opt.file = optarg; break;
		case 'm': opt.msize = (uint32_t)strtoul(optarg, NULL, 0); break;
		case 'k': opt.marked = true; break;
		case 't': opt.seconds = atof(optarg); break;
		case 'w': opt.warm_up = atof(optarg); break;
		case 'i': opt.identity = optarg; break;
		case 'T': opt.token = optarg; break;
		case 'S': opt.server = optarg; break;
		case 'p':
			if (opt.pid_count == MAX_PIDS)
				usage();
			opt.pids[opt.pid_count++] = atol(optarg);
			break;
		default: usage();
		}
	}
	char **words = argv + optind;
	if (!words[0] || strlen(opt.version) > 64 || strlen(opt.aname) > 4096)
		usage();
	opt.scenario = words[0];
	opt.plain = !strcmp(opt.version, "9P2000");
	if (!strcmp(words[0], "getattr")) {
		opt.tags = number(words, 1, MAX_TAGS);
	} else if (!strcmp(words[0], "conns")) {
		opt.conns = number(words, 1, 100000);
	} else if (!strcmp(words[0], "orc")) {
		work = ORC;
		opt.tags = number(words, 1, MAX_TAGS);
	} else if (!strcmp(words[0], "read") || !strcmp(words[0], "write")) {
		work = words[0][0] == 'r' ? READ : WRITE;
		opt.size = number(words, 1, 1u << 26);
		opt.tags = number(words, 2, MAX_TAGS);
	} else if (!strcmp(words[0], "idle")) {
		work = IDLE;
		opt.conns = number(words, 1, 100000);
		opt.warm_conns = number(words, 2, 100000);
	} else if (!strcmp(words[0], "shakes")) {
		work = SHAKES;
		opt.conns = number(words, 1, MAX_TAGS);
	} else if (!strcmp(words[0], "attach")) {
		work = ATTACH;
	} else if (strcmp(words[0], "serial")) {
		usage();
	}
	char path[2048];
	uint8_t *p = opt.walk_names;
	snprintf(path, sizeof path, "%s", opt.file);
	for (char *name = strtok(path, "/"); name; name = strtok(NULL, "/")) {
		if (++opt.walk_count > MAX_NAMES)
			errx(1, "%s: more than %d names", opt.file, MAX_NAMES);
		p = putstr(p, name, strlen(name));
	}
	opt.walk_length = (uint32_t)(p - opt.walk_names);
}

/* Ready what TLS needs, or say that this program has none. */
static void prepare_tls(void)
{
	bool secure = !strncmp(opt.addr, "tls!", 4);
	if (secure != !!opt.identity || !opt.token != !opt.server || (opt.token && !secure))
		errx(2, "tls!HOST!PORT needs -i DIR, and nothing else does; -T DIR and -S NAME go together, with it");
#ifdef WITH_TLS
	if (secure)
		tls_identity(opt.identity);
	if (opt.token)
		token_load(opt.token, opt.server);
#else
	if (secure)
		errx(2, "%s: this program was compiled without TLS", opt.addr);
#endif
}

int main(int argc, char **argv)
{
	parse(argc, argv);
	prepare_tls();
	struct rlimit files;
	getrlimit(RLIMIT_NOFILE, &files);
	files.rlim_cur = files.rlim_max;
	setrlimit(RLIMIT_NOFILE, &files);

	uint32_t total = opt.conns + opt.warm_conns;
	uint64_t reply = (uint64_t)opt.size + READ_OVERHEAD, room = reply * opt.tags;
	struct conn *conns = allocate(total, sizeof *conns);
	if (work == ORC)
		room = (uint64_t)opt.tags * (BLOCK + READ_OVERHEAD);
	room = room > (2u << 20) ? 2u << 20 : room;
	room = room < 2 * reply ? 2 * reply : room;
	for (uint32_t i = 0; i < total; i++) {
		conns[i].in_size = room < 8192 ? 8192 : (uint32_t)room;
		conns[i].in = allocate(conns[i].in_size, 1);
	}
	if (work == IDLE) {
		measure_idle(conns);
		return 0;
	}
	if (work == SHAKES || work == ATTACH) {
		measure_repeated(conns);
		return 0;
	}
	for (uint32_t i = 0; i < opt.conns; i++)
		set_up(&conns[i]);
	if (opt.size > opt.msize - IO_OVERHEAD)
		opt.size = opt.msize - IO_OVERHEAD;
	if ((opt.size && file_size < opt.size) || (work == ORC && file_size < BLOCK))
		errx(1, "%s: too small (%llu bytes)", opt.file, (unsigned long long)file_size);
	measure(conns);
	return 0;
}
