#include "call.h"
#include "codes.h"
#include "log.h"
#include "port.h"
#include "text.h"

#define FIFO 16
#define EMPTY 0x20

/* In user mode the thread pointer is set by wrfsbase: writing the register behind it is the kernel's alone. */
void thread_start(struct self *self)
{
    self->self = self;
#if defined FAULT_privileged
    __asm__ volatile("wrmsr" ::"c"(0xc0000100), "a"((u32)(u64)self), "d"((u32)((u64)self >> 32)));
#elif !defined FAULT_thread
    __asm__ volatile("wrfsbase %0" ::"r"(self) : "memory");
#endif
}

static struct self *me(void)
{
    struct self *self;
    __asm__ volatile("movq %%fs:0, %0" : "=r"(self));
    return self;
}

void log_bytes(const char *bytes, size_t count)
{
    if (!ports_have(PORTS_COM1)) {
        for (size_t i = 0; i < count; i++)
            putchar_debug(bytes[i]);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        if (i % FIFO == 0)
            while (!(port_in(PORTS_COM1, COM1 + 5) & EMPTY))
                ;
        port_out(PORTS_COM1, COM1, (u8)bytes[i]);
    }
}

void log_text(const char *words)
{
    log_bytes(words, text_length(words));
}

void log_line(const char *words)
{
    log_pair(words, "");
}

void log_pair(const char *words, const char *more)
{
    me()->lines++;
    log_text("root: ");
    log_text(words);
    log_text(more);
    log_text("\r\n");
}
