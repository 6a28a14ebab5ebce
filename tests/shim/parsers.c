/* The root task's two parsers on this machine, under the address and undefined-behaviour sanitizers.

     parsers bootinfo LAYOUT BITS_AT   a page on standard input; what was read, or what is wrong, as a line
     parsers reply TYPE TAG ASKED      a frame on standard input; the same
     parsers fuzz SEED COUNT           so many inputs of each kind: random, and good ones with a few changes

   Every input lies in memory of exactly its size, so that a byte read beyond it is seen. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bootinfo.h"
#include "nine.h"

static u64 seed;

static u64 next(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    return seed ^= seed << 17;
}

static size_t input(u8 *room, size_t most)
{
    return fread(room, 1, most, stdin);
}

static void tell_bootinfo(const u8 *page, i32 layout, i32 bits_at)
{
    struct bootinfo info;
    const char *wrong = bootinfo_read(page, layout, bits_at, &info);

    if (wrong)
        printf("%s\n", wrong);
    else
        printf("mcs=%d old=%d ipc=%llu extra=%llu cnode=%llu empty=%llu-%llu untyped=%llu+%llu memory=%llu best=%llu\n",
               info.mcs, info.old_untyped, (unsigned long long)info.ipc, (unsigned long long)info.extra_length,
               (unsigned long long)info.cnode_bits, (unsigned long long)info.empty_start,
               (unsigned long long)info.empty_end, (unsigned long long)info.untyped_start,
               (unsigned long long)info.untyped_count, (unsigned long long)info.memory,
               (unsigned long long)info.best_untyped);
}

/* All that a reply points to has to be within the frame: read it. */
static void touch(const struct reply *reply)
{
    volatile u8 sum = 0;

    for (u32 i = 0; i < reply->length; i++)
        sum ^= reply->text ? (u8)reply->text[i] : reply->data[i];
}

static const char *judge(const u8 *bytes, u32 size, u8 type, u16 tag, u32 asked, struct reply *reply)
{
    u8 *frame = malloc(size ? size : 1);
    const char *wrong;
    u32 said;

    memcpy(frame, bytes, size);
    wrong = size < 4 ? "no head" : reply_size(frame, 4096, &said);
    if (!wrong)
        wrong = reply_read(frame, size, type, tag, asked, reply);
    if (!wrong)
        touch(reply);
    free(frame);
    return wrong;
}

static void fuzz_reply(void)
{
    static const u8 types[] = {TVERSION, TATTACH, TWALK, TOPEN, TREAD, TWRITE, TCLUNK};
    u8 type = types[next() % sizeof types], bytes[64];
    u32 size = 7 + next() % 50;
    struct reply reply;

    for (u32 i = 0; i < sizeof bytes; i++)
        bytes[i] = (u8)(next() % 3 ? next() : next() % 20);
    if (next() % 8) {
        bytes[0] = (u8)size;
        bytes[1] = bytes[2] = bytes[3] = 0;
        bytes[4] = next() % 4 ? type + 1 : RERROR;
        bytes[5] = 7;
        bytes[6] = 0;
    }
    judge(bytes, size, type, 7, next() % 64, &reply);
}

static void fuzz_bootinfo(const u8 *good)
{
    u8 *page = malloc(PAGE);
    struct bootinfo info;

    if (good && next() % 4) {
        memcpy(page, good, PAGE);
        for (u64 changes = next() % 6; changes--;)
            page[next() % (next() % 2 ? 400 : PAGE)] = (u8)(next() % 2 ? next() : 0xff);
    } else {
        for (unsigned i = 0; i < PAGE; i++)
            page[i] = (u8)(next() % 2 ? next() : 0);
    }
    if (!bootinfo_read(page, (i32)(next() % 4), (i32[]){0, 8, 10, 9}[next() % 4], &info)) {
        /* what was believed holds together */
        if (info.empty_end > 1ull << info.cnode_bits || info.empty_start > info.empty_end || info.ipc % PAGE)
            abort();
    }
    free(page);
}

static void fuzz_chunks(void)
{
    u64 size = next() % 80;
    u8 *extra = malloc(size ? size : 1);

    for (u64 i = 0; i < size; i++)
        extra[i] = (u8)(next() % 4 ? 0 : next() % 40);
    const u8 *chunk = bootinfo_chunk(extra, size, next() % 3, 16 + next() % 16);
    if (chunk && (chunk < extra || chunk + 16 > extra + size))
        abort();
    free(extra);
}

int main(int argc, char **argv)
{
    static u8 page[PAGE];
    struct reply reply;

    if (argc == 4 && !strcmp(argv[1], "bootinfo") && input(page, PAGE) == PAGE) {
        tell_bootinfo(page, atoi(argv[2]), atoi(argv[3]));
    } else if (argc == 5 && !strcmp(argv[1], "reply")) {
        u32 size = (u32)input(page, PAGE);
        const char *wrong = judge(page, size, (u8)atoi(argv[2]), (u16)atoi(argv[3]), (u32)atoi(argv[4]), &reply);
        printf("%s\n", wrong ? wrong : reply.refused ? "refused" : "ok");
    } else if (argc == 4 && !strcmp(argv[1], "fuzz")) {
        const u8 *good = input(page, PAGE) == PAGE ? page : NULL;
        seed = strtoull(argv[2], NULL, 10) * 2 + 1;
        for (long i = atol(argv[3]); i--;) {
            fuzz_reply();
            fuzz_bootinfo(good);
            fuzz_chunks();
        }
        puts("held");
    } else {
        return 2;
    }
    return 0;
}
