/* SPDX-License-Identifier: Apache-2.0 */
/* Standard streams that are closed, full or without a reader. */
#include "cli.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* The next file that is opened would have the number of a closed stream, and get its output.
 * /dev/null takes its place, in the mode in which the stream's own use fails. */
static bool stream_reserve(int fd, int mode) {
    if (fcntl(fd, F_GETFD) >= 0 || errno != EBADF) return true;
    int opened = open("/dev/null", mode);
    if (opened == fd || opened < 0) return opened == fd;
    bool moved = dup2(opened, fd) == fd;
    close(opened);
    return moved;
}

bool streams_prepare(void) {
    /* a file at the limit of its size is then an error of write, which names the file */
    signal(SIGXFSZ, SIG_IGN);
    return stream_reserve(STDIN_FILENO, O_WRONLY) && stream_reserve(STDOUT_FILENO, O_RDONLY) &&
           stream_reserve(STDERR_FILENO, O_RDONLY);
}

bool output_is_open(void) {
    int flags = fcntl(STDOUT_FILENO, F_GETFL);
    return flags >= 0 && (flags & O_ACCMODE) != O_RDONLY;
}

/* Whether output was lost; errno is then the reason. */
static bool output_is_lost(void) {
    bool failed_before = ferror(stdout) != 0;
    errno = 0;
    if (fflush(stdout) != 0) return true;
    if (!failed_before) return false;
    /* stdio forgot why: a line break tells */
    if (write(STDOUT_FILENO, "\n", 1) == 1) errno = EIO;
    return true;
}

int output_end(int exit_code, bool needed, const char *hint) {
    if (!output_is_lost()) return exit_code;
    if (errno == EPIPE) /* the reader wants no more, which needs no message */
        return needed && exit_code == EXIT_DONE ? 128 + SIGPIPE : exit_code;
    if (!needed) {
        if (output_is_open())
            fprintf(stderr,
                    "dilocox: standard output can't be written: %s; what it lacks is "
                    "progress and a report\n",
                    strerror(errno));
        return exit_code;
    }
    if (exit_code != EXIT_DONE) return exit_code;
    failure_say(DLX_SYSTEM, "standard output can't be written: %s%s", strerror(errno), hint);
    return EXIT_FAILED;
}
