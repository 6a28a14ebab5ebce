/* Frames, and page tables with the rights that code, constants and data need.

   The top 2 GiB show the first GiB of physical memory: our own pages each with its rights (code is not
   writable, nothing else is executable), the rest as data. The lower half belongs to the root task. */
#include "kernel.h"

#define PRESENT 1ull
#define WRITE 2ull
#define USER 4ull
#define UNCACHED 0x10ull
#define LARGE 0x80ull
#define NX (1ull << 63)
#define ADDRESS 0x000ffffffffff000ull
#define ENTRIES 512
#define LARGE_PAGE (PAGE * ENTRIES)

extern char text_start[], text_end[], rodata_end[];

static u64 next_frame, last_frame;
static u64 *root_table;

void *at(u64 physical)
{
    return (void *)(HIGH + physical);
}

void memory_start(u64 first, u64 end)
{
    next_frame = (first + PAGE - 1) & ~(PAGE - 1);
    last_frame = (end < GIB ? end : GIB) & ~(PAGE - 1);
}

void clear(void *page)
{
    u64 count = PAGE / 8;

    __asm__ volatile("rep stosq" : "+D"(page), "+c"(count) : "a"(0) : "memory");
}

u64 frames_left(void)
{
    return next_frame < last_frame ? (last_frame - next_frame) / PAGE : 0;
}

u64 frame_take(void)
{
    if (!frames_left())
        stop(EXIT_NO_ROOT, "no memory is left; give QEMU -m 32 or more");
    u64 frame = next_frame;
    next_frame += PAGE;
    clear(at(frame));
    return frame;
}

/* A naturally aligned region that nothing else will get; its contents are whatever they are. */
u64 region_take(unsigned bits)
{
    u64 size = 1ull << bits, start = (next_frame + size - 1) & ~(size - 1);

    if (start > last_frame || size > last_frame - start)
        stop(EXIT_NO_ROOT, "no memory is left for the root task; give QEMU -m 32 or more");
    next_frame = start + size;
    return start;
}

static u64 *table_below(u64 *table, unsigned index, u64 rights, bool make)
{
    if (!(table[index] & PRESENT)) {
        if (!make)
            return NULL;
        table[index] = frame_take() | PRESENT | rights;
    }
    return at(table[index] & ADDRESS);
}

static u64 *entry_of(u64 address, u64 rights, bool make)
{
    u64 *table = root_table;

    for (int shift = 39; shift > 12 && table; shift -= 9)
        table = table_below(table, address >> shift & (ENTRIES - 1), rights, make);
    return table ? &table[address >> 12 & (ENTRIES - 1)] : NULL;
}

void map_kernel(void)
{
    root_table = at(frame_take());
    for (u64 frame = 0; frame < LARGE_PAGE; frame += PAGE) {
        u64 page = HIGH + frame;
        bool own = page >= (u64)text_start && page < (u64)rodata_end;
        bool code = own && page < (u64)text_end;
        *entry_of(page, WRITE, true) = frame | PRESENT | (own ? 0 : WRITE) | (code ? 0 : NX);
    }
    u64 *pdpt = at(root_table[HIGH >> 39 & (ENTRIES - 1)] & ADDRESS);
    u64 *directory = at(pdpt[HIGH >> 30 & (ENTRIES - 1)] & ADDRESS);
    for (u64 i = 1; i < ENTRIES; i++)
        directory[i] = i * LARGE_PAGE | PRESENT | WRITE | LARGE | NX;
    *entry_of(LOCAL_APIC, WRITE, true) = LOCAL_APIC_PHYSICAL | PRESENT | WRITE | UNCACHED | NX;
    __asm__ volatile("movq %0, %%cr3" ::"r"((u64)root_table - HIGH) : "memory");
}

void map_user(u64 address, u64 frame, int rights)
{
    *entry_of(address, USER | WRITE, true) =
        frame | PRESENT | USER | (rights & MAP_WRITE ? WRITE : 0) | (rights & MAP_EXECUTE ? 0 : NX);
}

u64 *user_entry(u64 address)
{
    return address < USER_TOP ? entry_of(address, 0, false) : NULL;
}

bool user_frame(u64 address, u64 *physical)
{
    u64 *entry = user_entry(address);

    if (!entry || !(*entry & PRESENT))
        return false;
    *physical = (*entry & ADDRESS) | (address & (PAGE - 1));
    return true;
}

void flush(u64 address)
{
    __asm__ volatile("invlpg (%0)" ::"r"(address) : "memory");
}
