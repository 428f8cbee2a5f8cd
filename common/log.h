/* SPDX-License-Identifier: BSD-3-Clause */
/* log: one line on stderr, "PROGRAM: level: text key=value ...".
 *
 * Never called on the hot path.  With JOURNAL_STREAM set, lines carry the
 * journal's "<3>" prefixes.  Control characters in the text are escaped, so
 * that a peer's bytes cannot forge a line.
 */
#ifndef MERINO_LOG_H
#define MERINO_LOG_H

enum log_level { LOG_LEVEL_NONE = -1, LOG_LEVEL_ERROR, LOG_LEVEL_WARNING, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

/* Sets the program's name (kept by reference) and the most verbose level shown. */
void log_init(const char *program, enum log_level most);

void log_line(enum log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#define log_error(...) log_line(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warning(...) log_line(LOG_LEVEL_WARNING, __VA_ARGS__)
#define log_info(...) log_line(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...) log_line(LOG_LEVEL_DEBUG, __VA_ARGS__)

#endif
