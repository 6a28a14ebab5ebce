/* The root task: takes stock of what the kernel gave, tests it, and hangs itself under the host's tree. */
#include "abi.h"
#include "bootinfo.h"
#include "call.h"
#include "codes.h"
#include "cpu.h"
#include "log.h"
#include "mmu.h"
#include "port.h"
#include "verbs.h"

/* Without BootInfo nobody says which slots are free. These are free in every kernel that was looked at: far
   above what it fills and within the smallest root CNode in use. */
#define GUESSED_FIRST 3800
#define GUESSED_END 3900

_Noreturn void start(const u8 *page);

extern char image_end[];

static const char *look_at(const u8 *page, struct bootinfo *info)
{
    if (!page)
        return "the kernel passed no BootInfo: its address is 0";
    if ((u64)page % PAGE || (u64)page >= USER_TOP)
        return "the kernel passed an address that is no page for BootInfo";
    return bootinfo_read(page, abi.layout, abi.untyped_bits_at, info);
}

/* Say why there can be no start, by whatever way there is. The IPC buffer lies behind the image. */
static _Noreturn void give_up(const char *why)
{
    calls_start((u64 *)image_end);
    if (!labels_find())
        ports_start(GUESSED_FIRST, GUESSED_END);
    log_line(why);
    leave(EXIT_BOOTINFO);
}

_Noreturn void start(const u8 *page)
{
    static struct self self;
    static struct machine machine;
    struct bootinfo *info = &machine.info;
    const char *wrong;

    machine.entered = timestamp();
    thread_start(&self);
    if ((wrong = look_at(page, info)))
        give_up(wrong);
    calls_start((u64 *)info->ipc);
    wrong = labels_find();
    if (!wrong)
        wrong = ports_start(info->empty_start, info->empty_end);
    if (ports_have(PORTS_COM1))
        serial_start(PORTS_COM1, COM1, 0);
    if (wrong) {
        log_line(wrong);
        leave(EXIT_REFUSED);
    }
    info->empty_start += PORT_RANGES;
    machine.standin =
        (const void *)bootinfo_chunk(page + PAGE, info->extra_length, STANDIN_CHUNK, sizeof(struct standin_chunk));
    log_line(info->mcs ? "BootInfo read, mcs" : "BootInfo read, classic");
    wrong = mmu_test(info);
    log_pair("mmu: ", wrong ? wrong : mmu_words());
    serve(&machine, wrong);
}
