#include "abi.h"
#include "call.h"
#include "mmu.h"

#define TABLE_SPAN (2ull << 20)
#define NO_TABLE 0x700000000000ull
#define PATTERN 0x5741525245000000ull
#define WORDS (PAGE / 8)

extern char image_end[];

/* The last page of our own 2 MiB: the table for it is there, and nothing lies so high. */
u64 mmu_address(void)
{
    return (((u64)image_end + TABLE_SPAN - 1) & ~(TABLE_SPAN - 1)) - PAGE;
}

const char *mmu_words(void)
{
    return abi.frame ? "ok" : "untested: the type number of a page is not known; give the SDK";
}

const char *mmu_test(struct bootinfo *info)
{
    u64 address = mmu_address(), frame = info->empty_start;
    volatile u64 *words = (volatile u64 *)address;
    const char *wrong;

    if ((u64)image_end + (2 + 1) * PAGE + info->extra_length > address - PAGE)
        return "there is no room for a test page beside the image";
    if (!abi.frame)
        return NULL;
    if (!info->best_untyped || frame == info->empty_end)
        return "there is no memory, or no slot, for a page";
    if (frame_make(info->best_untyped, frame) != CALL_OK)
        return "no page could be made";
    info->empty_start++;
    if ((wrong = labels_find_page(frame)))
        return wrong;
    if (page_map(frame, NO_TABLE) != LOOKUP)
        return "a page was mapped where there is no table for it";
    if (page_map(frame, address) != CALL_OK)
        return "a page could not be mapped";
    for (unsigned i = 0; i < WORDS; i++)
        if (words[i])
            return "a new page is not zero-filled";
    for (unsigned i = 0; i < WORDS; i++)
        words[i] = PATTERN + i;
    for (unsigned i = 0; i < WORDS; i++)
        if (words[i] != PATTERN + i)
            return "a page does not keep what is written to it";
    if (page_map(frame, address - PAGE) != BAD_ARGUMENT)
        return "a page was mapped twice";
    if (page_unmap(frame) != CALL_OK || page_map(frame, address - PAGE) != CALL_OK)
        return "a page could not be mapped anew after unmapping";
    words = (volatile u64 *)(address - PAGE);
    for (unsigned i = 0; i < WORDS; i++)
        if (words[i] != PATTERN + i)
            return "a page lost its contents between two mappings";
    if (page_unmap(frame) != CALL_OK)
        return "a page could not be unmapped";
    return NULL;
}
