#include "codes.h"
#include "cpu.h"
#include "link.h"
#include "log.h"
#include "nine.h"
#include "port.h"
#include "text.h"
#include "call.h"

#define MSIZE 4096
#define OVERHEAD 24
#define FIFO 16
#define RECEIVED 1
#define EMPTY 0x20

static u8 out[MSIZE], in[MSIZE];
static struct request request;
static u32 msize = MSIZE;
static u16 tag;
static char refusal[128];
static u32 refusal_length;
static u64 waited;

static _Noreturn void broken(const char *why)
{
    log_pair("the host breaks 9P2000: ", why);
    leave(EXIT_PROTOCOL);
}

static void receive(u8 *to, u32 count)
{
    for (u32 i = 0; i < count; i++) {
        u64 since = timestamp();
        while (!(port_in(PORTS_COM2, COM2 + 5) & RECEIVED))
            yield();
        waited += timestamp() - since;
        to[i] = port_in(PORTS_COM2, COM2);
    }
}

static void send(const u8 *bytes, u32 count)
{
    for (u32 i = 0; i < count; i++) {
        if (i % FIFO == 0)
            while (!(port_in(PORTS_COM2, COM2 + 5) & EMPTY))
                ;
        port_out(PORTS_COM2, COM2, bytes[i]);
    }
}

static void begin(u8 type)
{
    tag = type == TVERSION ? NINE_NOTAG : (u16)((tag + 1) & 0x7fff);
    request_start(&request, out, msize, type, tag);
}

static void finish(void)
{
    if (!request_end(&request))
        broken("our own request does not fit into a message"); /* bounded by link_payload: cannot be */
    send(out, request.used);
}

static bool ask(u8 type, u32 asked, struct reply *reply)
{
    const char *wrong;
    u32 size;

    finish();
    receive(in, 4);
    if ((wrong = reply_size(in, msize, &size)))
        broken(wrong);
    receive(in + 4, size - 4);
    if ((wrong = reply_read(in, size, type, tag, asked, reply)))
        broken(wrong);
    if (reply->refused) {
        refusal_length = reply->length < sizeof refusal ? reply->length : sizeof refusal;
        memcpy(refusal, reply->text, refusal_length);
    }
    return !reply->refused;
}

void link_start(void)
{
    struct reply reply;

    serial_start(PORTS_COM2, COM2, 1);
    begin(TVERSION);
    request32(&request, MSIZE);
    request_string(&request, "9P2000");
    if (!ask(TVERSION, 0, &reply) || !text_is(reply.text, reply.length, "9P2000"))
        broken("it does not speak 9P2000");
    if (reply.msize < NINE_LEAST || reply.msize > MSIZE)
        broken("its message size is less than 1048 or more than was offered");
    msize = reply.msize;
    begin(TATTACH);
    request32(&request, LINK_ROOT);
    request32(&request, NINE_NOFID);
    request_string(&request, "root");
    request_string(&request, "");
    if (!ask(TATTACH, 0, &reply)) {
        log_text("root: the host refuses us: ");
        log_bytes(refusal, refusal_length);
        log_text("\r\n");
        leave(EXIT_REFUSED);
    }
}

bool link_walk(u32 fid, const char *path)
{
    struct reply reply;
    u16 names = 0;

    begin(TWALK);
    request32(&request, LINK_ROOT);
    request32(&request, fid);
    u32 count_at = request.used;
    request16(&request, 0);
    while (*path) {
        u32 length = 0;
        while (path[length] && path[length] != '/')
            length++;
        request16(&request, (u16)length);
        request_bytes(&request, path, length);
        path += length + (path[length] == '/');
        names++;
    }
    out[count_at] = (u8)names;
    if (!ask(TWALK, names, &reply))
        return false;
    if (reply.count == names)
        return true;
    refusal_length = 0; /* part of the way: the rest does not exist, and the fid was not made */
    return false;
}

bool link_open(u32 fid, u8 mode)
{
    struct reply reply;

    begin(TOPEN);
    request32(&request, fid);
    request8(&request, mode);
    return ask(TOPEN, 0, &reply);
}

bool link_read(u32 fid, u64 offset, u32 count, const u8 **data, u32 *length)
{
    struct reply reply;

    begin(TREAD);
    request32(&request, fid);
    request64(&request, offset);
    request32(&request, count);
    if (!ask(TREAD, count, &reply))
        return false;
    *data = reply.data;
    *length = reply.length;
    return true;
}

static void write_request(u32 fid, u64 offset, const char *bytes, u32 count)
{
    begin(TWRITE);
    request32(&request, fid);
    request64(&request, offset);
    request32(&request, count);
    request_bytes(&request, bytes, count);
}

bool link_write(u32 fid, u64 offset, const char *bytes, u32 count)
{
    struct reply reply;

    write_request(fid, offset, bytes, count);
    return ask(TWRITE, count, &reply) && reply.count == count;
}

void link_tell(u32 fid, u64 offset, const char *bytes, u32 count)
{
    write_request(fid, offset, bytes, count);
    finish();
}

void link_clunk(u32 fid)
{
    struct reply reply;

    begin(TCLUNK);
    request32(&request, fid);
    ask(TCLUNK, 0, &reply);
}

u32 link_payload(void)
{
    return msize - OVERHEAD;
}

const char *link_refusal(u32 *length)
{
    *length = refusal_length;
    return refusal;
}

u64 link_waited(void)
{
    return waited;
}
