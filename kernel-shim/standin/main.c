/* A stand-in kernel: boots one root task in user mode, as a small and honest part of seL4 would.

   It is ours and it is small. It is no port of that kernel, not compatible with it beyond what calls.c
   lists, and nothing about it is verified. */
#include "abi-numbers.h"
#include "kernel.h"
#include "standin.h"

#define MULTIBOOT_LOADER 0x2badb002
#define PVH_LOADER 0x336ec578
#define LOWEST (2ull << 20) /* below it lie firmware, our own image and what the loader tells us */
#define WORD 24

struct multiboot {
    u32 flags, low, high, boot_device, command, module_count, modules;
};
struct module32 {
    u32 start, end, text, reserved;
};
struct pvh {
    u32 magic, version, flags, module_count;
    u64 modules, command, rsdp, map;
    u32 map_count, reserved;
};
struct module64 {
    u64 start, size, text, reserved;
};
struct range {
    u64 start, size;
    u32 type, reserved;
};
struct loaded {
    u64 start, end, top;
    const char *command;
};

void main(u32 loader, u32 info, u64 entered);

extern char kernel_end[];

static void from_multiboot(u64 info, struct loaded *loaded)
{
    const struct multiboot *m = at(info);

    loaded->top = m->flags & 1 ? ((u64)m->high + 1024) << 10 : 0;
    loaded->command = m->flags & 4 ? at(m->command) : "";
    if (m->flags & 8 && m->module_count) {
        const struct module32 *module = at(m->modules);
        loaded->start = module->start;
        loaded->end = module->end;
    }
}

static void from_pvh(u64 info, struct loaded *loaded)
{
    const struct pvh *p = at(info);

    if (p->magic != PVH_LOADER)
        stop(EXIT_NO_ROOT, "the loader's record is not what PVH says");
    loaded->command = p->command && p->command < GIB ? at(p->command) : "";
    if (p->module_count && p->modules < GIB) {
        const struct module64 *module = at(p->modules);
        loaded->start = module->start;
        loaded->end = module->size < GIB ? module->start + module->size : 0;
    }
    const struct range *map = at(p->map);
    for (u32 i = 0; p->version >= 1 && i < p->map_count && i < 64; i++)
        if (map[i].type == 1 && map[i].start <= 1 << 20 && map[i].size > 1 << 20)
            loaded->top = map[i].start + map[i].size;
}

/* `word` or `word=NUMBER` on the command line; what it does not know is refused, for a typing error must
   not boot something else than was asked. */
static void choose(const char *word, unsigned length, struct options *options)
{
    static const struct {
        const char *name;
        unsigned kind;
    } known[] = {{"mcs", 0}, {"old-untyped", 1}, {"release", 2}, {"no-bootinfo", 3},
                 {"issue=", 4}, {"page=", 5}, {"frame=", 6}};
    bool *switches[] = {&options->mcs, &options->old_untyped, &options->release, &options->no_bootinfo};
    i32 *numbers[] = {&options->issue, &options->page_map, &options->frame};

    for (unsigned i = 0; i < sizeof known / sizeof known[0]; i++) {
        unsigned n = 0;
        while (known[i].name[n] && n < length && known[i].name[n] == word[n])
            n++;
        if (known[i].name[n])
            continue;
        if (known[i].kind < 4 && n == length) {
            *switches[known[i].kind] = true;
            return;
        }
        i32 value = 0;
        unsigned digits = n;
        while (digits < length && digits < n + 4 && word[digits] >= '0' && word[digits] <= '9')
            value = 10 * value + word[digits++] - '0';
        if (known[i].kind >= 4 && digits == length && digits > n) {
            *numbers[known[i].kind - 4] = value;
            return;
        }
    }
    say("standin: the command line has a word that is not known: ");
    for (unsigned i = 0; i < length && i < WORD; i++)
        say((char[]){word[i], 0});
    say("\r\n");
    leave(EXIT_NO_ROOT);
}

/* In a multiboot command line the first word is the kernel's own name, as QEMU was given it. */
static void read_command(const char *text, bool named, struct options *options)
{
    for (unsigned words = 0; *text; words++) {
        unsigned length = 0;
        while (*text == ' ')
            text++;
        while (text[length] && text[length] != ' ')
            length++;
        if (length && !(named && !words))
            choose(text, length, options);
        text += length;
    }
}

static void processor(void)
{
    u32 a = 7, b, c = 0, d;
    u64 cr4;

    __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    if (!(b & 1))
        stop(EXIT_NO_ROOT, "this processor lacks fsgsbase; give QEMU -cpu max");
    __asm__ volatile("movq %%cr4, %0" : "=r"(cr4));
    cr4 |= 1 << 16 | (b >> 7 & 1) << 20 | (u64)(b >> 20 & 1) << 21; /* FSGSBASE, SMEP, SMAP */
    __asm__ volatile("movq %0, %%cr4" ::"r"(cr4));
}

void main(u32 loader, u32 info, u64 entered)
{
    struct options options = {.issue = ABI_STANDIN_ISSUE, .page_map = ABI_STANDIN_PAGE_MAP, .frame = ABI_STANDIN_FRAME};
    struct loaded loaded = {0};
    struct image image;

    if (loader == MULTIBOOT_LOADER)
        from_multiboot(info, &loaded);
    else if (loader == PVH_LOADER)
        from_pvh(info, &loaded);
    else
        stop(EXIT_NO_ROOT, "the loader speaks neither multiboot nor PVH");
    read_command(loaded.command, loader == MULTIBOOT_LOADER, &options);
    if (loaded.start >= loaded.end || loaded.end > GIB || loaded.start < (u64)kernel_end - HIGH)
        stop(EXIT_NO_ROOT, "there is no root task; give QEMU -initrd root.elf");
    processor();

    /* Loaders put the root task just behind us, or at the very top: what is free lies on the other side. */
    u64 before = loaded.start > LOWEST ? loaded.start - LOWEST : 0;
    u64 behind = loaded.top > loaded.end ? loaded.top - loaded.end : 0;
    if (before > behind)
        memory_start(LOWEST, loaded.start);
    else
        memory_start(loaded.end > LOWEST ? loaded.end : LOWEST, loaded.top);
    map_kernel();
    trap_start();
    image_load(at(loaded.start), loaded.end - loaded.start, &image);

    u64 ipc = frame_take(), bootinfo = frame_take(), extra = frame_take();
    struct standin_chunk *chunk = at(extra);
    chunk->id = STANDIN_CHUNK;
    chunk->length = sizeof *chunk;
    chunk->entered = entered;
    timer_page(&chunk->ticks);
    map_user(image.end, ipc, MAP_WRITE);
    map_user(image.end + PAGE, bootinfo, MAP_WRITE);
    map_user(image.end + 2 * PAGE, extra, 0);
    calls_start(&options, at(ipc));
    bootinfo_make(at(bootinfo), &image, sizeof *chunk);

    say("standin: a stand-in kernel, not seL4; ");
    say(options.mcs ? "mcs" : "classic");
    say(" numbers, ");
    say_number(frames_left() * PAGE >> 10);
    say(" KiB free\r\n");
    struct frame user = {
        .rdi = options.no_bootinfo ? 0 : image.end + PAGE,
        .rip = image.entry, .cs = 0x2b, .ss = 0x23, .flags = 0x202,
    };
    enter_user(&user);
}
