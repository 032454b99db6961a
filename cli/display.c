/* SPDX-License-Identifier: Apache-2.0 */
/* Progress: one live line per site on a terminal, plain lines on a pipe. */
#include "cli.h"
#include "base/text.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { PLAIN_EVERY_S = 5 };

struct display {
    pthread_mutex_t mutex;
    bool terminal, drawn;
    int count, name_width;
    const char *names[DLXI_SITES_MAX];
    char lines[DLXI_SITES_MAX][LINE_BYTES];
    double printed_s[DLXI_SITES_MAX];
    double drawn_s;
};

double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

void bytes_format(char text[32], double bytes) {
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB", "PB"};
    int unit = 0;
    while (bytes >= 1000 && unit < 5) bytes /= 1000, unit++;
    snprintf(text, 32, unit == 0 ? "%.0f %s" : "%.1f %s", bytes, units[unit]);
}

void step_format(char line[LINE_BYTES], const dlx_event *event) {
    char sent[32];
    bytes_format(sent, (double)event->wan_bytes_sent);
    double share =
        event->tokens_target > 0 ? (double)event->tokens / (double)event->tokens_target : 0;
    double steps =
        share > 0 ? fmax((double)event->step, round((double)event->step / fmin(share, 1))) : 0;
    long left = event->left_s < 1e7 ? lround(event->left_s) : 9999999;
    snprintf(line, LINE_BYTES,
             "step %llu/%.0f  loss %.3f  %.1fk tokens/s  round %llu  rank %.1f  H %u  sent %s  "
             "busy %.0f%%  left %ld:%02ld",
             (unsigned long long)event->step, steps, event->loss, event->tokens_per_s / 1000,
             (unsigned long long)event->round, event->factor_rank_mean, event->inner_steps, sent,
             100 * event->utilization, left / 60, left % 60);
}

void text_print(const char *text, size_t bytes, const char *indent) {
    for (size_t i = 0, length; i<bytes; i += length> 0 ? length : 1) {
        uint32_t code;
        length = dlxi_utf8_next(&code, text + i, bytes - i);
        bool control = code < 0x20 || (code >= 0x7f && code < 0xa0);
        if (length > 0 && !control)
            fwrite(text + i, 1, length, stdout);
        else if (text[i] == '\n')
            printf("\n%s", indent);
        else
            putchar(text[i] == '\t' ? ' ' : '?');
    }
}

display *display_open(const char *const *names, int count, bool plain) {
    display *d = calloc(1, sizeof *d);
    if (d == NULL) return NULL;
    pthread_mutex_init(&d->mutex, NULL);
    d->terminal = !plain && isatty(STDOUT_FILENO) == 1;
    d->count = count;
    for (int i = 0; i < count; i++) {
        d->names[i] = names[i];
        if ((int)strlen(names[i]) > d->name_width) d->name_width = (int)strlen(names[i]);
    }
    return d;
}

/* The cursor is below the block of lines, which is drawn over itself. */
static void lines_draw(display *d) {
    if (d->drawn) printf("\033[%dA", d->count);
    /* a line too long for the terminal is cut, not wrapped: the block keeps its height */
    printf("\033[?7l");
    for (int i = 0; i < d->count; i++)
        printf("\r\033[K%-*s  %s\n", d->name_width, d->names[i], d->lines[i]);
    printf("\033[?7h");
    fflush(stdout);
    d->drawn = true;
    d->drawn_s = now_s();
}

static void lines_erase(display *d) {
    if (!d->drawn) return;
    printf("\033[%dA\033[J", d->count);
    d->drawn = false;
}

void display_step(display *d, int site, const char *line) {
    if (d == NULL) return;
    pthread_mutex_lock(&d->mutex);
    snprintf(d->lines[site], LINE_BYTES, "%s", line);
    double now = now_s();
    if (d->terminal) {
        if (now - d->drawn_s > 0.1) lines_draw(d);
    } else if (now - d->printed_s[site] > PLAIN_EVERY_S) {
        printf("%-*s  %s\n", d->name_width, d->names[site], line);
        fflush(stdout);
        d->printed_s[site] = now;
    }
    pthread_mutex_unlock(&d->mutex);
}

void display_text(display *d, const char *site, const char *text) {
    if (d == NULL) return;
    pthread_mutex_lock(&d->mutex);
    bool was_drawn = d->drawn;
    lines_erase(d);
    if (site != NULL)
        printf("%-*s  %s\n", d->name_width, site, text);
    else
        printf("%s\n", text);
    fflush(stdout);
    if (was_drawn) lines_draw(d); /* the next step may take as long as an outage */
    pthread_mutex_unlock(&d->mutex);
}

void display_close(display *d) {
    if (d == NULL) return;
    if (d->terminal && d->drawn) lines_draw(d);
    pthread_mutex_destroy(&d->mutex);
    free(d);
}
