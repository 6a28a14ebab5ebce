/* The little of 9P that the load generator and its canned responder share:
 * message numbers, little-endian integers, and the layout of a frame,
 * size[4] type[1] tag[2] body. A reply's number is its request's plus one.
 */
#ifndef WARREN_BENCH_WIRE_H
#define WARREN_BENCH_WIRE_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

enum {
	Rlerror = 7, Tlopen = 12, Tgetattr = 24,
	Tversion = 100, Tauth = 102, Tattach = 104, Rerror = 107, Twalk = 110, Topen = 112,
	Tread = 116, Twrite = 118, Tclunk = 120, Tstat = 124,
};

enum {
	HEADER = 7,
	QID = 13,
	READ_OVERHEAD = HEADER + 4,
	WRITE_OVERHEAD = HEADER + 16,
	IO_OVERHEAD = 24,          /* what v9fs subtracts from msize, for reads and writes alike */
	GETATTR_REPLY = HEADER + 153,
	BLOCK = 4096,              /* every BLOCK of a marked file begins with its own offset */
	NOTAG = 0xffff,
};

#define NOFID 0xffffffffu

static inline uint8_t *put8(uint8_t *p, uint8_t v) { *p = v; return p + 1; }
static inline uint8_t *put16(uint8_t *p, uint16_t v) { v = htole16(v); memcpy(p, &v, 2); return p + 2; }
static inline uint8_t *put32(uint8_t *p, uint32_t v) { v = htole32(v); memcpy(p, &v, 4); return p + 4; }
static inline uint8_t *put64(uint8_t *p, uint64_t v) { v = htole64(v); memcpy(p, &v, 8); return p + 8; }

static inline uint8_t *putstr(uint8_t *p, const char *text, size_t length)
{
	p = put16(p, (uint16_t)length);
	memcpy(p, text, length);
	return p + length;
}

static inline uint16_t get16(const uint8_t *p) { uint16_t v; memcpy(&v, p, 2); return le16toh(v); }
static inline uint32_t get32(const uint8_t *p) { uint32_t v; memcpy(&v, p, 4); return le32toh(v); }
static inline uint64_t get64(const uint8_t *p) { uint64_t v; memcpy(&v, p, 8); return le64toh(v); }

static inline uint8_t *put_header(uint8_t *p, uint8_t type, uint16_t tag)
{
	return put16(put8(p + 4, type), tag);
}

/* Write the size of the frame that ends at `end`; return that size. */
static inline uint32_t seal(uint8_t *frame, const uint8_t *end)
{
	put32(frame, (uint32_t)(end - frame));
	return (uint32_t)(end - frame);
}

static inline void put_marks(uint8_t *data, uint64_t offset, uint32_t count)
{
	for (uint32_t at = (uint32_t)(-offset % BLOCK); at + 8 <= count; at += BLOCK)
		put64(data + at, offset + at);
}

#endif
