/* SPDX-License-Identifier: BSD-3-Clause */
/* error: formats error texts into the caller's struct error.
 *
 * Texts are formatted aside first, since arguments often point into the text that
 * is being replaced.  A text is always valid UTF-8, since it becomes part of a JSON
 * reply: other bytes of a file name or a peer turn into '?', and what does not fit
 * is cut between characters.
 */
#include "common/error.h"

#include <assert.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "common/bytes.h"

enum { TEXT_MAX = sizeof(((struct error *)0)->text) };

/* Replaces what is no UTF-8; a last character that was cut short goes away. */
static void make_valid(char *text, bool cut)
{
	size_t left = strlen(text), len;

	for (; left > 0; text += len, left -= len) {
		len = utf8_length(text, left);
		if (len > 0)
			continue;
		if (cut && left < 4 && (unsigned char)*text >= 0xc0) {
			*text = '\0';
			return;
		}
		*text = '?';
		len = 1;
	}
}

/* nonnull: else UBSan makes GCC 12 see a path with a null format, and warn. */
__attribute__((nonnull, format(printf, 2, 0)))
static void format_text(char text[static TEXT_MAX], const char *fmt, va_list ap)
{
	int len = vsnprintf(text, TEXT_MAX, fmt, ap);

	make_valid(text, len >= TEXT_MAX);
}

__attribute__((format(printf, 4, 0)))
static void record(struct error *err, enum error_class class, int code, const char *fmt,
		   va_list ap)
{
	char text[TEXT_MAX];

	assert(code < 0);
	if (!err)
		return;
	format_text(text, fmt, ap);
	err->code = code;
	err->class = class;
	memcpy(err->text, text, TEXT_MAX);
	err->hint[0] = '\0';
}

int error_set(struct error *err, int code, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	record(err, ERROR_GENERIC, code, fmt, ap);
	va_end(ap);
	return code;
}

int error_set_class(struct error *err, enum error_class class, int code, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	record(err, class, code, fmt, ap);
	va_end(ap);
	return code;
}

int error_errno(struct error *err, int code, const char *fmt, ...)
{
	char text[TEXT_MAX], reason[128];
	va_list ap;

	assert(code < 0);
	if (!err)
		return code;
	va_start(ap, fmt);
	format_text(text, fmt, ap);
	va_end(ap);
	return error_set(err, code, "%s: %s", text, strerror_r(-code, reason, sizeof(reason)));
}

void error_hint(struct error *err, const char *fmt, ...)
{
	va_list ap;
	int len;

	if (!err)
		return;
	va_start(ap, fmt);
	len = vsnprintf(err->hint, sizeof(err->hint), fmt, ap);
	va_end(ap);
	make_valid(err->hint, len >= (int)sizeof(err->hint));
}

void error_prefix(struct error *err, const char *fmt, ...)
{
	char prefix[TEXT_MAX], hint[sizeof(err->hint)];
	va_list ap;

	if (!err || err->code == 0)
		return;
	memcpy(hint, err->hint, sizeof(hint));
	va_start(ap, fmt);
	format_text(prefix, fmt, ap);
	va_end(ap);
	error_set_class(err, err->class, err->code, "%s%s", prefix, err->text);
	memcpy(err->hint, hint, sizeof(hint));
}

const char *error_class_name(enum error_class class)
{
	switch (class) {
	case ERROR_COMMAND_NOT_FOUND:
		return "CommandNotFound";
	case ERROR_DEVICE_NOT_ACTIVE:
		return "DeviceNotActive";
	case ERROR_DEVICE_NOT_FOUND:
		return "DeviceNotFound";
	case ERROR_GENERIC:
		break;
	}
	return "GenericError";
}
