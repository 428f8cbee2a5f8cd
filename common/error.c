/* SPDX-License-Identifier: BSD-3-Clause */
/* error: formats error texts into the caller's struct error.
 *
 * Texts are formatted aside first, since arguments often point into the text that
 * is being replaced.  A text that does not fit is cut between characters, so that
 * valid UTF-8 stays valid.
 */
#include "common/error.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "common/bytes.h"

enum { TEXT_MAX = sizeof(((struct error *)0)->text) };

/* Drops a last character of which vsnprintf kept only the first bytes. */
static void trim_cut_character(char *text)
{
	size_t len = strlen(text), start = len;

	while (start > 0 && len - start < 3 && ((unsigned char)text[start - 1] & 0xc0) == 0x80)
		start--;
	if (start > 0 && (unsigned char)text[start - 1] >= 0xc0 &&
	    utf8_length(text + start - 1, len - start + 1) == 0)
		text[start - 1] = '\0';
}

static void format_text(char text[static TEXT_MAX], const char *fmt, va_list ap)
{
	if (vsnprintf(text, TEXT_MAX, fmt, ap) >= TEXT_MAX)
		trim_cut_character(text);
}

static void record(struct error *err, enum error_class class, int code, const char *text)
{
	err->code = code;
	err->class = class;
	memcpy(err->text, text, TEXT_MAX);
}

int error_set(struct error *err, int code, const char *fmt, ...)
{
	char text[TEXT_MAX];
	va_list ap;

	assert(code < 0);
	if (!err)
		return code;
	va_start(ap, fmt);
	format_text(text, fmt, ap);
	va_end(ap);
	record(err, ERROR_GENERIC, code, text);
	return code;
}

int error_set_class(struct error *err, enum error_class class, int code, const char *fmt, ...)
{
	char text[TEXT_MAX];
	va_list ap;

	assert(code < 0);
	if (!err)
		return code;
	va_start(ap, fmt);
	format_text(text, fmt, ap);
	va_end(ap);
	record(err, class, code, text);
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

void error_prefix(struct error *err, const char *fmt, ...)
{
	char prefix[TEXT_MAX];
	va_list ap;

	if (!err || err->code == 0)
		return;
	va_start(ap, fmt);
	format_text(prefix, fmt, ap);
	va_end(ap);
	error_set_class(err, err->class, err->code, "%s%s", prefix, err->text);
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
