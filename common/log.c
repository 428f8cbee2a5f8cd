/* SPDX-License-Identifier: BSD-3-Clause */
/* log: builds one line on the stack and writes it with one write(2).
 *
 * There is no lock and no buffer: lines of threads do not mix as far as the
 * kernel keeps a write whole.  What is no printable UTF-8 (control characters
 * with C1, bytes that form no character) is shown as \n, \t or \xNN.  errno
 * survives, so that a log line can stand between a call and its check.
 */
#include "common/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/bytes.h"

static const struct {
	const char *name;
	int priority;			/* syslog's */
} levels[] = {
	[LOG_LEVEL_ERROR] = { "error", 3 },
	[LOG_LEVEL_WARNING] = { "warning", 4 },
	[LOG_LEVEL_INFO] = { "info", 6 },
	[LOG_LEVEL_DEBUG] = { "debug", 7 },
};

/* Set once by log_init, before there are threads. */
static const char *log_program;
static enum log_level log_most = LOG_LEVEL_INFO;
static bool log_journal;

/* JOURNAL_STREAM is inherited; it is ours only while it names our stderr. */
static bool stderr_is_journal(void)
{
	const char *stream = getenv("JOURNAL_STREAM");
	unsigned long long dev, ino;
	struct stat st;

	return stream && sscanf(stream, "%llu:%llu", &dev, &ino) == 2 &&
	       fstat(STDERR_FILENO, &st) == 0 && st.st_dev == dev && st.st_ino == ino;
}

void log_init(const char *program, enum log_level most)
{
	log_program = program;
	log_most = most;
	log_journal = stderr_is_journal();
}

static bool is_control(const unsigned char *p, size_t len)
{
	if (len == 1)
		return p[0] < 0x20 || p[0] == 0x7f;
	return len == 2 && p[0] == 0xc2 && p[1] < 0xa0;
}

/* Writes one character or escape to OUT (room for 4 bytes) and returns its length;
 * *USED is how many bytes of P it stands for. */
static size_t escape(char *out, const unsigned char *p, size_t n, size_t *used)
{
	size_t len = utf8_length(p, n);

	if (len > 0 && !is_control(p, len)) {
		memcpy(out, p, len);
		*used = len;
		return len;
	}
	*used = 1;
	if (p[0] == '\n' || p[0] == '\t') {
		memcpy(out, p[0] == '\n' ? "\\n" : "\\t", 2);
		return 2;
	}
	static const char hex[] = "0123456789abcdef";
	out[0] = '\\';
	out[1] = 'x';
	out[2] = hex[p[0] >> 4];
	out[3] = hex[p[0] & 15];
	return 4;
}

/* Appends TEXT to the line of *LEN bytes, escaped, leaving room for "...\n". */
static void append(char *line, size_t size, size_t *len, const char *text)
{
	const unsigned char *p = (const unsigned char *)text;
	size_t left = strlen(text), used;

	for (; left > 0; p += used, left -= used) {
		if (*len + 4 + 4 > size) {
			memcpy(line + *len, "...", 3);
			*len += 3;
			return;
		}
		*len += escape(line + *len, p, left, &used);
	}
}

void log_line(enum log_level level, const char *fmt, ...)
{
	char text[2048], line[4096];
	int saved = errno;
	size_t len = 0;
	va_list ap;

	if (level > log_most)
		return;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);

	if (log_journal)
		len = snprintf(line, sizeof(line), "<%d>", levels[level].priority);
	len += snprintf(line + len, 256, "%.128s: %s: ",
			log_program ? log_program : program_invocation_short_name,
			levels[level].name);
	append(line, sizeof(line), &len, text);
	line[len++] = '\n';
	/* Nowhere to report a failure to report. */
	ssize_t ignored = write(STDERR_FILENO, line, len);
	(void)ignored;
	errno = saved;
}
