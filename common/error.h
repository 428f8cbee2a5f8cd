/* SPDX-License-Identifier: BSD-3-Clause */
/* error: what went wrong, for a person and for a QMP client.
 *
 * Functions return 0 or -errno; the text goes into an explicit struct error
 * that the caller owns (usually on its stack).  The text names the thing that
 * failed and what the user can do.  An error is reported once, where it is
 * consumed.  Text may hold bytes of a peer: it is truncated, never asserted.
 */
#ifndef MERINO_ERROR_H
#define MERINO_ERROR_H

#include <stdarg.h>

/* QMP's error classes (QEMU docs/interop/qmp-spec, "error response"). */
enum error_class {
	ERROR_GENERIC,
	ERROR_COMMAND_NOT_FOUND,
	ERROR_DEVICE_NOT_ACTIVE,
	ERROR_DEVICE_NOT_FOUND,
};

struct error {
	int code;			/* -errno; 0: nothing was reported */
	enum error_class class;
	char text[1024];		/* always terminated; valid UTF-8 when the inputs are */
	char hint[256];			/* what a person can do; not sent to QMP clients.  "": none */
};

#define ERROR_INIT ((struct error){ 0 })

/* Records CODE (an -errno, negative) and the text; returns CODE, so that
 * `return error_set(err, -EINVAL, ...)` reads well.  ERR may be NULL.
 * An error that is already recorded is overwritten. */
int error_set(struct error *err, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* The same with a QMP class. */
int error_set_class(struct error *err, enum error_class class, int code, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));

/* Appends ": strerror(-code)" to the formatted text; returns CODE. */
int error_errno(struct error *err, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* Adds a hint to a recorded error. */
void error_hint(struct error *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Puts "PREFIX" in front of a recorded text ("PREFIX" brings its own ": "). */
void error_prefix(struct error *err, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

/* "GenericError", "CommandNotFound", ...: QMP's name of a class. */
const char *error_class_name(enum error_class class);

#endif
