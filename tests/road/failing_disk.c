/* A disk that fails: while the file that FAILING_DISK names is there, writes to the file that it names, and syncs of it, end with EIO.
   For LD_PRELOAD. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

static int fails(int fd)
{
    const char *switch_file = getenv("FAILING_DISK");
    char named[PATH_MAX], link[64], found[PATH_MAX];
    int at = switch_file ? open(switch_file, O_RDONLY | O_CLOEXEC) : -1;
    if (at < 0)
        return 0;
    ssize_t length = read(at, named, sizeof named - 1);
    close(at);
    if (length <= 0)
        return 0;
    named[length] = 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, found, sizeof found - 1);
    if (size < 0)
        return 0;
    found[size] = 0;
    return strncmp(found, named, (size_t)length) == 0;
}

#define FAILS(fd) \
    do { \
        int kept = errno; \
        if (fails(fd)) { \
            errno = EIO; \
            return -1; \
        } \
        errno = kept; \
    } while (0)

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t offset)
{
    FAILS(fd);
    return syscall(SYS_pwrite64, fd, bytes, count, offset);
}

ssize_t pwrite(int fd, const void *bytes, size_t count, off_t offset)
{
    FAILS(fd);
    return syscall(SYS_pwrite64, fd, bytes, count, offset);
}

ssize_t write(int fd, const void *bytes, size_t count)
{
    FAILS(fd);
    return syscall(SYS_write, fd, bytes, count);
}

int fdatasync(int fd)
{
    FAILS(fd);
    return (int)syscall(SYS_fdatasync, fd);
}

int fsync(int fd)
{
    FAILS(fd);
    return (int)syscall(SYS_fsync, fd);
}
