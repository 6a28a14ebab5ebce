#include "nine.h"
#include "text.h"

#define QID 13
#define NAMES_MOST 16

static u32 number(const u8 *at, int bytes)
{
    u32 value = 0;

    while (bytes--)
        value = value << 8 | at[bytes];
    return value;
}

static void request_number(struct request *request, u64 value, int bytes)
{
    for (; bytes--; value >>= 8)
        request8(request, (u8)value);
}

void request_start(struct request *request, u8 *at, u32 room, u8 type, u16 tag)
{
    *request = (struct request){.at = at, .room = room};
    request32(request, 0);
    request8(request, type);
    request16(request, tag);
}

void request8(struct request *request, u8 value)
{
    if (request->used == request->room)
        request->over = true;
    else
        request->at[request->used++] = value;
}

void request16(struct request *request, u16 value)
{
    request_number(request, value, 2);
}

void request32(struct request *request, u32 value)
{
    request_number(request, value, 4);
}

void request64(struct request *request, u64 value)
{
    request_number(request, value, 8);
}

void request_bytes(struct request *request, const char *bytes, u32 count)
{
    while (count--)
        request8(request, (u8)*bytes++);
}

void request_string(struct request *request, const char *text)
{
    u32 length = (u32)text_length(text);

    request16(request, (u16)length);
    request_bytes(request, text, length);
}

bool request_end(struct request *request)
{
    u32 used = request->used;

    if (request->over || used < NINE_HEAD)
        return false;
    request->used = 0;
    request32(request, used);
    request->used = used;
    return true;
}

const char *reply_size(const u8 head[4], u32 msize, u32 *size)
{
    *size = number(head, 4);
    if (*size < NINE_HEAD)
        return "a reply is shorter than its own head";
    if (*size > msize)
        return "a reply is longer than was agreed";
    return NULL;
}

/* A string at AT, of which LEFT bytes are there and no more may be. */
static bool last_string(const u8 *at, u32 left, struct reply *reply)
{
    if (left < 2 || number(at, 2) != left - 2)
        return false;
    reply->text = (const char *)at + 2;
    reply->length = left - 2;
    return true;
}

static bool body(u8 type, const u8 *at, u32 left, u32 asked, struct reply *reply)
{
    switch (type) {
    case TVERSION:
        if (left < 4)
            return false;
        reply->msize = number(at, 4);
        return last_string(at + 4, left - 4, reply);
    case TATTACH:
        return left == QID;
    case TWALK:
        if (left < 2)
            return false;
        reply->count = number(at, 2);
        return reply->count <= NAMES_MOST && reply->count <= asked && left == 2 + QID * reply->count;
    case TOPEN:
        return left == QID + 4;
    case TREAD:
        if (left < 4)
            return false;
        reply->length = number(at, 4);
        reply->data = at + 4;
        return reply->length <= asked && left == 4 + reply->length;
    case TWRITE:
        if (left != 4)
            return false;
        reply->count = number(at, 4);
        return reply->count <= asked;
    case TCLUNK:
        return !left;
    default:
        return false;
    }
}

const char *reply_read(const u8 *frame, u32 size, u8 type, u16 tag, u32 asked, struct reply *reply)
{
    *reply = (struct reply){0};
    if (size < NINE_HEAD || number(frame, 4) != size)
        return "a reply is not as long as it says";
    if (number(frame + 5, 2) != tag)
        return "a reply has a tag that was not asked with";
    if (frame[4] == RERROR) {
        reply->refused = true;
        if (!last_string(frame + NINE_HEAD, size - NINE_HEAD, reply))
            return "an error without its text";
        return NULL;
    }
    if (frame[4] != type + 1)
        return "a reply is of another kind than the request";
    if (!body(type, frame + NINE_HEAD, size - NINE_HEAD, asked, reply))
        return "a reply has wrong fields";
    return NULL;
}
