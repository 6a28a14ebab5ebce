/* rdx number, rdi capability, rsi message info, the first four words in r10 r8 r9 r15, the rest and the extra
   capability in the IPC buffer. The kernel gives rsp back from rbx, so it is parked there. */
#include "abi.h"
#include "call.h"

#define NO_CAP 0
#define WORDS_IN_REGISTERS 4
#define MESSAGE 1
#define EXTRA_CAPS 122
#define DEPTH 64
#define READ_WRITE 3
#define PAGE_LABELS 12

struct labels labels;
static u64 *ipc;

void calls_start(u64 *ipc_buffer)
{
    ipc = ipc_buffer;
}

static u64 enter(i64 number, u64 cap, u64 info, u64 word[WORDS_IN_REGISTERS])
{
    register u64 w0 __asm__("r10") = word[0];
    register u64 w1 __asm__("r8") = word[1];
    register u64 w2 __asm__("r9") = word[2];
    register u64 w3 __asm__("r15") = word[3];

    __asm__ volatile("movq %%rsp, %%rbx\n\tsyscall\n\tmovq %%rbx, %%rsp"
                     : "+D"(cap), "+S"(info), "+d"(number), "+r"(w0), "+r"(w1), "+r"(w2), "+r"(w3)
                     :
                     : "rax", "rbx", "rcx", "r11", "r12", "r13", "r14", "memory");
    word[0] = w0;
    return info;
}

/* EXTRA_CAP 0 is none; slot 0 never holds a capability. ANSWER may be NULL. The result is the error code. */
u64 call(u64 cap, u64 label, unsigned length, const u64 *words, u64 extra_cap, u64 *answer)
{
    u64 word[WORDS_IN_REGISTERS] = {0};

    for (unsigned i = 0; i < length; i++) {
        if (i < WORDS_IN_REGISTERS)
            word[i] = words[i];
        else
            ipc[MESSAGE + i] = words[i];
    }
    if (extra_cap != NO_CAP)
        ipc[EXTRA_CAPS] = extra_cap;
    u64 info = enter(abi.call, cap, label << 12 | (extra_cap != NO_CAP ? 1 << 7 : 0) | length, word);
    if (answer)
        *answer = word[0];
    return info >> 12;
}

void yield(void)
{
    u64 word[WORDS_IN_REGISTERS] = {0};

    if (abi.yield)
        enter(abi.yield, 0, 0, word);
    else
        __asm__ volatile("pause");
}

void putchar_debug(char c)
{
    u64 word[WORDS_IN_REGISTERS] = {0};

    if (abi.putchar)
        enter(abi.putchar, (u8)c, 0, word);
}

const char *call_error(u64 error)
{
    static const char *const words[] = {"ok", "InvalidArgument", "InvalidCapability", "IllegalOperation", "RangeError",
                                        "AlignmentError", "FailedLookup", "TruncatedMessage", "DeleteFirst",
                                        "RevokeFirst", "NotEnoughMemory"};
    return error < sizeof words / sizeof words[0] ? words[error] : "an unknown error";
}

/* The capability for IO ports takes one label and answers every other with IllegalOperation and no effect.
   Asked without arguments, the right one complains of just that. */
const char *labels_find(void)
{
    labels.issue = (u64)abi.issue;
    for (u64 label = ABI_PROBE_FIRST; !labels.issue && label <= ABI_PROBE_LAST; label++)
        if (call((u64)abi.ioport_control, label, 0, NULL, NO_CAP, NULL) == TRUNCATED) {
            labels.issue = label;
            labels.issue_probed = true;
        }
    if (!labels.issue)
        return "no label from 20 to 90 issues IO ports";
    labels.in8 = abi.in8 && !labels.issue_probed ? (u64)abi.in8 : labels.issue + 1;
    labels.out8 = abi.out8 && !labels.issue_probed ? (u64)abi.out8 : labels.issue + 4;
    return NULL;
}

/* The labels of a page stand shortly before; the first that wants arguments maps, the next one unmaps, and
   unmapping what is not mapped does nothing. */
const char *labels_find_page(u64 frame)
{
    labels.page_map = (u64)abi.page_map;
    labels.page_unmap = (u64)abi.page_unmap;
    if (labels.page_map && labels.page_unmap)
        return NULL;
    for (u64 label = labels.issue - PAGE_LABELS; label < labels.issue; label++)
        if (call(frame, label, 0, NULL, NO_CAP, NULL) == TRUNCATED) {
            if (call(frame, label + 1, 0, NULL, NO_CAP, NULL) != CALL_OK)
                break;
            labels.page_map = label;
            labels.page_unmap = label + 1;
            labels.page_probed = true;
            return NULL;
        }
    return "no label near that of IO ports maps a page";
}

u64 ports_issue(u16 first, u16 last, u64 slot)
{
    return call((u64)abi.ioport_control, labels.issue, 4, (u64[]){first, last, slot, DEPTH}, (u64)abi.cnode, NULL);
}

u64 frame_make(u64 untyped, u64 slot)
{
    return call(untyped, (u64)abi.retype, 6, (u64[]){(u64)abi.frame, 0, 0, 0, slot, 1}, (u64)abi.cnode, NULL);
}

u64 page_map(u64 frame, u64 address)
{
    return call(frame, labels.page_map, 3, (u64[]){address, READ_WRITE, 0}, (u64)abi.vspace, NULL);
}

u64 page_unmap(u64 frame)
{
    return call(frame, labels.page_unmap, 0, NULL, NO_CAP, NULL);
}
