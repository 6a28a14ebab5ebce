/* Plain 9P2000, the client's half: bytes in, bytes out. No I/O, no state but what the caller holds.

   Every length in a reply is checked before anything behind it is read; a reply has exactly the fields it
   should have and not a byte more. Functions that judge return NULL, or what is wrong. */
#ifndef NINE_H
#define NINE_H

#include "types.h"

#define NINE_NOTAG 0xffff
#define NINE_NOFID 0xffffffffu
#define NINE_HEAD 7
#define NINE_LEAST 1048  /* the smallest message size we work with: a report goes in one write */

enum {
    TVERSION = 100, TATTACH = 104, RERROR = 107, TWALK = 110, TOPEN = 112, TREAD = 116, TWRITE = 118, TCLUNK = 120,
};
enum { OREAD, OWRITE };

/* A request being written. `over` once something did not fit. */
struct request {
    u8 *at;
    u32 room, used;
    bool over;
};
void request_start(struct request *request, u8 *at, u32 room, u8 type, u16 tag);
void request8(struct request *request, u8 value);
void request16(struct request *request, u16 value);
void request32(struct request *request, u32 value);
void request64(struct request *request, u64 value);
void request_bytes(struct request *request, const char *bytes, u32 count);
void request_string(struct request *request, const char *text);
bool request_end(struct request *request); /* writes the size; false if it did not fit */

/* What a reply says, whatever its kind: only the fields of that kind are set. */
struct reply {
    bool refused;        /* Rerror: `text` says why */
    const char *text;    /* Rerror, Rversion */
    u32 length;          /* of text, or of data */
    u32 msize;           /* Rversion */
    const u8 *data;      /* Rread */
    u32 count;           /* Rwrite: bytes taken; Rwalk: names walked */
};

/* The size of the frame that begins with these 4 bytes. */
const char *reply_size(const u8 head[4], u32 msize, u32 *size);

/* FRAME, whole, as the answer to a request of TYPE with TAG; ASKED bounds an Rread, an Rwrite and an Rwalk. */
const char *reply_read(const u8 *frame, u32 size, u8 type, u16 tag, u32 asked, struct reply *reply);

#endif
