// SPDX-License-Identifier: BSD-3-Clause
/* progress: drawing.
 *
 * 100 is told only when everything is done and durable, never by rounding.  A
 * reader that went away is not a reason to stop: what cannot be written is
 * dropped.
 */
#include "clients/progress.h"

#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/size.h"

enum { REDRAW_NS = 100000000, BAR = 32 };

uint64_t progress_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ull + ts.tv_nsec;
}

void progress_init(struct progress *p, enum progress_mode mode, int fd)
{
	*p = (struct progress){
		.mode = mode,
		.fd = mode == PROGRESS_FD ? fd : STDERR_FILENO,
		.percent = -1,
		.start = progress_now(),
	};
	p->tty = mode == PROGRESS_BAR && isatty(p->fd);
}

static void put(const struct progress *p, const char *text, size_t n)
{
	ssize_t dropped = write(p->fd, text, n);

	(void)dropped;
}

/* "1:02:03", or "2:03". */
static void format_time(char *buf, size_t n, uint64_t s)
{
	unsigned h = s / 3600, m = s / 60 % 60;

	if (s >= 100 * 3600)
		snprintf(buf, n, "long");
	else if (h)
		snprintf(buf, n, "%u:%02u:%02u", h, m, (unsigned)(s % 60));
	else
		snprintf(buf, n, "%u:%02u", m, (unsigned)(s % 60));
}

static void draw(struct progress *p, double part, uint64_t copied, uint64_t now)
{
	double seconds = (now - p->start) / 1e9;
	char line[200], bar[BAR + 1], bytes[SIZE_TEXT_MAX], rate[SIZE_TEXT_MAX], left[24];
	int n;

	memset(bar, ' ', BAR);
	memset(bar, '*', part * BAR);
	bar[BAR] = 0;
	size_format(bytes, sizeof(bytes), copied);
	size_format(rate, sizeof(rate), seconds > 0 ? copied / seconds : 0);
	format_time(left, sizeof(left), part > 0 ? seconds / part - seconds : UINT32_MAX);
	n = snprintf(line, sizeof(line), "%s[%s] %3d%% %s copied, %s/s, %s left%s", p->tty ? "\r" : "",
		     bar, p->percent, bytes, rate, left, p->tty ? "\033[K" : "\n");
	put(p, line, n);
	p->drawn = p->tty;
}

static void tell(struct progress *p, double part, int percent, uint64_t copied)
{
	uint64_t now = progress_now();
	int before = p->percent;
	char line[16];

	p->percent = percent;
	if (p->mode == PROGRESS_FD) {
		if (percent != before)
			put(p, line, snprintf(line, sizeof(line), "%d/100\n", percent));
	} else if (p->tty ? now - p->last >= REDRAW_NS || percent == 100
			  : before < 0 || percent / 10 != before / 10) {
		p->last = now;
		draw(p, part, copied, now);
	}
}

void progress_update(struct progress *p, uint64_t done, uint64_t total, uint64_t copied)
{
	double part = total ? (double)done / total : 0;
	int percent = part * 100;

	if (p->mode != PROGRESS_NONE)
		tell(p, part, percent < 100 ? percent : 99, copied);
}

void progress_end(struct progress *p, bool ok, uint64_t total, uint64_t copied)
{
	if (p->mode == PROGRESS_NONE)
		return;
	if (ok)
		tell(p, 1, 100, copied);
	if (p->drawn)
		put(p, "\n", 1);
}
