/* The root task's ELF: checked, copied into fresh frames, mapped with the rights its segments name.

   The kernel we stand in for checks less and maps everything writable and executable. A file that this
   loader takes would be taken there too; one that it refuses is refused with the reason on COM1. */
#include "kernel.h"

#define SEGMENTS 16

struct elf_head {
    u8 ident[16];
    u16 type, machine;
    u32 version;
    u64 entry, segments, sections;
    u32 flags;
    u16 head_size, segment_size, segment_count, section_size, section_count, names;
};
struct elf_segment {
    u32 type, flags;
    u64 offset, address, physical, file_size, memory_size, align;
};
enum { LOAD = 1, EXECUTE = 1, WRITE = 2 };

static _Noreturn void refuse(const char *why)
{
    say("standin: the root task is refused: ");
    say(why);
    say("\r\n");
    leave(EXIT_NO_ROOT);
}

static u64 up(u64 address)
{
    return (address + PAGE - 1) & ~(PAGE - 1);
}

static void check_segment(const struct elf_segment *s, u64 size)
{
    if (s->type != LOAD)
        refuse("it has a segment that is not LOAD");
    if (s->offset > size || s->file_size > size - s->offset)
        refuse("a segment lies outside the file");
    if (s->file_size > s->memory_size)
        refuse("a segment has more bytes in the file than in memory");
    if (!s->memory_size || s->address % PAGE)
        refuse("a segment is empty or does not begin a page");
    if (s->address < PAGE || s->address >= USER_TOP || s->memory_size > USER_TOP - 4 * PAGE - s->address)
        refuse("a segment lies outside user memory");
    if ((s->flags & WRITE) && (s->flags & EXECUTE))
        refuse("a segment is both writable and executable");
}

static void load(const u8 *file, const struct elf_segment *s)
{
    for (u64 done = 0; done < s->memory_size; done += PAGE) {
        u64 frame = frame_take();
        u8 *to = at(frame);
        u64 left = s->file_size > done ? s->file_size - done : 0;
        for (u64 i = 0; i < left && i < PAGE; i++)
            to[i] = file[s->offset + done + i];
        map_user(s->address + done, frame,
                 (s->flags & WRITE ? MAP_WRITE : 0) | (s->flags & EXECUTE ? MAP_EXECUTE : 0));
    }
}

void image_load(const u8 *file, u64 size, struct image *image)
{
    const struct elf_head *head = (const void *)file;
    bool entered = false;

    if (size < sizeof *head || *(const u32 *)(const void *)file != 0x464c457f)
        refuse("it is no ELF file");
    if (head->ident[4] != 2 || head->machine != 62)
        refuse("it is not for 64-bit x86");
    if (head->type != 2)
        refuse("it is not a fixed-address executable");
    if (head->segment_size != sizeof(struct elf_segment) || !head->segment_count || head->segment_count > SEGMENTS)
        refuse("its segment table is odd");
    if (head->segments % 8 || head->segments > size ||
        head->segment_count * sizeof(struct elf_segment) > size - head->segments)
        refuse("its segment table lies outside the file");
    const struct elf_segment *s = (const void *)(file + head->segments);
    image->start = ~0ull;
    image->end = 0;
    for (int i = 0; i < head->segment_count; i++) {
        check_segment(&s[i], size);
        u64 end = up(s[i].address + s[i].memory_size);
        for (int j = 0; j < i; j++)
            if (s[i].address < up(s[j].address + s[j].memory_size) && s[j].address < end)
                refuse("two segments share a page");
        if (up(s[i].memory_size) / PAGE > frames_left())
            refuse("it does not fit into memory");
        if ((s[i].flags & EXECUTE) && head->entry >= s[i].address && head->entry - s[i].address < s[i].file_size)
            entered = true;
        if (s[i].address < image->start)
            image->start = s[i].address;
        if (end > image->end)
            image->end = end;
    }
    if (!entered)
        refuse("its entry is not in executable memory");
    for (int i = 0; i < head->segment_count; i++)
        load(file, &s[i]);
    image->entry = head->entry;
}
