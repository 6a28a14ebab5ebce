/* Preloaded into a process: what it does to files under POWER_DIR that can be lost is written to POWER_LOG.
 *
 * A record is  op[1] path_length[2] data_length[4] offset[8] path data, numbers little-endian:
 *
 *     C path           a file was made            U path           a name was removed
 *     W path at data   bytes were written         R path data      a name was moved to another
 *     T path size      a file was cut or grown    A data           something was said on standard output
 *     S path           a file was synced          D                the directory was synced
 *
 * One lock is held over each call and its record, so the order of records is an order in which it happened.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MOST 4096

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char *paths[MOST]; /* of descriptors that are followed; "" is the directory */
static const char *folder;
static size_t folder_length;
static int out = -1;

static void *next(const char *name) { return dlsym(RTLD_NEXT, name); }

__attribute__((constructor)) static void begin(void)
{
    int (*real)(const char *, int, ...) = next("open");
    folder = getenv("POWER_DIR");
    folder_length = folder ? strlen(folder) : 0;
    if (folder)
        out = real(getenv("POWER_LOG"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static void record(char op, const char *path, uint64_t at, const void *data, uint32_t length)
{
    ssize_t (*real)(int, const void *, size_t) = next("write");
    uint16_t named = path ? strlen(path) : 0;
    unsigned char head[15] = {op};
    memcpy(head + 1, &named, 2);
    memcpy(head + 3, &length, 4);
    memcpy(head + 7, &at, 8);
    if (real(out, head, 15) != 15 || real(out, path, named) != named || real(out, data, length) != length)
        abort();
}

/* The name within the directory, if it is one that is followed: a database or its log. */
static const char *within(const char *path)
{
    if (out < 0 || strncmp(path, folder, folder_length) != 0)
        return NULL;
    path += folder_length;
    if (*path == 0)
        return path;
    size_t n = strlen(++path);
    int follows = (n > 3 && strcmp(path + n - 3, ".db") == 0) || (n > 4 && strcmp(path + n - 4, "-wal") == 0) ||
                  (n > 8 && strcmp(path + n - 8, "-journal") == 0) || strstr(path, ".restore") != NULL ||
                  strstr(path, ".before") != NULL;
    return follows ? path : NULL;
}

static int opened(const char *real_name, const char *path, int flags, mode_t mode)
{
    int (*real)(const char *, int, ...) = next(real_name);
    const char *name = within(path);
    if (name == NULL)
        return real(path, flags, mode);
    pthread_mutex_lock(&lock);
    struct stat there;
    int fresh = *name && stat(path, &there) != 0;
    int fd = real(path, flags, mode);
    if (fd >= 0 && fd < MOST) {
        free(paths[fd]);
        paths[fd] = strdup(name);
        if (fresh)
            record('C', name, 0, "", 0);
        else if (flags & O_TRUNC)
            record('T', name, 0, "", 0);
    }
    pthread_mutex_unlock(&lock);
    return fd;
}

#define OPEN(NAME)                                        \
    int NAME(const char *path, int flags, ...)            \
    {                                                     \
        va_list more;                                     \
        va_start(more, flags);                            \
        mode_t mode = (flags & O_CREAT) ? va_arg(more, mode_t) : 0; \
        va_end(more);                                     \
        return opened(#NAME, path, flags, mode);          \
    }
OPEN(open)
OPEN(open64)

static const char *followed(int fd) { return fd >= 0 && fd < MOST ? paths[fd] : NULL; }

int close(int fd)
{
    int (*real)(int) = next("close");
    if (followed(fd)) {
        pthread_mutex_lock(&lock);
        free(paths[fd]);
        paths[fd] = NULL;
        pthread_mutex_unlock(&lock);
    }
    return real(fd);
}

static ssize_t placed(const char *name, int fd, const void *data, size_t length, off_t at)
{
    ssize_t (*real)(int, const void *, size_t, off_t) = next(name);
    const char *path = followed(fd);
    if (path == NULL)
        return real(fd, data, length, at);
    pthread_mutex_lock(&lock);
    ssize_t done = real(fd, data, length, at);
    if (done > 0)
        record('W', path, at, data, done);
    pthread_mutex_unlock(&lock);
    return done;
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t at) { return placed("pwrite", fd, data, length, at); }
ssize_t pwrite64(int fd, const void *data, size_t length, off_t at) { return placed("pwrite64", fd, data, length, at); }

ssize_t write(int fd, const void *data, size_t length)
{
    ssize_t (*real)(int, const void *, size_t) = next("write");
    const char *path = followed(fd);
    if (out < 0 || (path == NULL && fd != 1))
        return real(fd, data, length);
    pthread_mutex_lock(&lock);
    off_t at = path ? lseek(fd, 0, SEEK_CUR) : 0;
    ssize_t done = real(fd, data, length);
    if (done > 0)
        record(path ? 'W' : 'A', path, at, data, done);
    pthread_mutex_unlock(&lock);
    return done;
}

static int sized(const char *name, int fd, off_t size)
{
    int (*real)(int, off_t) = next(name);
    const char *path = followed(fd);
    if (path == NULL)
        return real(fd, size);
    pthread_mutex_lock(&lock);
    int done = real(fd, size);
    if (done == 0)
        record('T', path, size, "", 0);
    pthread_mutex_unlock(&lock);
    return done;
}

int ftruncate(int fd, off_t size) { return sized("ftruncate", fd, size); }
int ftruncate64(int fd, off_t size) { return sized("ftruncate64", fd, size); }

static int synced(const char *name, int fd)
{
    int (*real)(int) = next(name);
    const char *path = followed(fd);
    if (path == NULL)
        return real(fd);
    pthread_mutex_lock(&lock);
    int done = real(fd);
    if (done == 0)
        record(*path ? 'S' : 'D', path, 0, "", 0);
    pthread_mutex_unlock(&lock);
    return done;
}

int fsync(int fd) { return synced("fsync", fd); }
int fdatasync(int fd) { return synced("fdatasync", fd); }

int unlink(const char *path)
{
    int (*real)(const char *) = next("unlink");
    const char *name = within(path);
    if (name == NULL)
        return real(path);
    pthread_mutex_lock(&lock);
    int done = real(path);
    if (done == 0)
        record('U', name, 0, "", 0);
    pthread_mutex_unlock(&lock);
    return done;
}

int rename(const char *from, const char *to)
{
    int (*real)(const char *, const char *) = next("rename");
    const char *name = within(from), *then = within(to);
    if (name == NULL || then == NULL)
        return real(from, to);
    pthread_mutex_lock(&lock);
    int done = real(from, to);
    if (done == 0)
        record('R', name, 0, then, strlen(then));
    pthread_mutex_unlock(&lock);
    return done;
}
