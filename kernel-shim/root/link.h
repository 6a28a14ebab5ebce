/* The host's tree, over COM2: one request at a time.

   What the peer answers wrongly ends the machine, with the reason on COM1: there is nobody else to talk to.
   What it refuses in good form is handed back. While a reply is awaited the processor is given away. */
#ifndef LINK_H
#define LINK_H

#include "types.h"

#define LINK_ROOT 0

void link_start(void);                          /* version and attach */
bool link_walk(u32 fid, const char *path);      /* from the root; false if it was refused */
bool link_open(u32 fid, u8 mode);
bool link_read(u32 fid, u64 offset, u32 count, const u8 **data, u32 *length);
bool link_write(u32 fid, u64 offset, const char *bytes, u32 count);
void link_clunk(u32 fid);
void link_tell(u32 fid, u64 offset, const char *bytes, u32 count); /* a write whose answer is not awaited */
u32 link_payload(void);                         /* the most that one read or write carries */
const char *link_refusal(u32 *length);          /* the last refusal's text */
u64 link_waited(void);                          /* time stamp counts spent waiting, so far */

#endif
