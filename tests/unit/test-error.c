/* SPDX-License-Identifier: BSD-3-Clause */
/* error.h and log.h: what a peer's bytes cannot do to a message. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/error.h"
#include "common/log.h"

static void test_set(void **state)
{
	struct error err = ERROR_INIT;

	assert_int_equal(error_set(&err, -EINVAL, "bad %d", 7), -EINVAL);
	assert_string_equal(err.text, "bad 7");
	assert_int_equal(error_set_class(&err, ERROR_DEVICE_NOT_FOUND, -ENOENT, "no"), -ENOENT);
	error_prefix(&err, "node '%s': ", "x");
	assert_string_equal(err.text, "node 'x': no");
	assert_int_equal(err.class, ERROR_DEVICE_NOT_FOUND);
	assert_int_equal(err.code, -ENOENT);
	assert_string_equal(error_class_name(err.class), "DeviceNotFound");
	assert_int_equal(error_errno(&err, -ENOSPC, "cannot write '%s'", "f"), -ENOSPC);
	assert_string_equal(err.text, "cannot write 'f': No space left on device");
	assert_int_equal(err.class, ERROR_GENERIC);
	/* The text may be an argument of what replaces it. */
	error_set(&err, -EIO, "again: %s", err.text);
	assert_string_equal(err.text, "again: cannot write 'f': No space left on device");
	assert_int_equal(error_set(NULL, -EIO, "nobody"), -EIO);
	error_prefix(NULL, "x");
	err = ERROR_INIT;
	error_prefix(&err, "x");
	assert_string_equal(err.text, "");
}

/* Whatever is cut or broken, the text is UTF-8. */
static void test_utf8(void **state)
{
	char long_text[2048];
	struct error err;

	for (int shift = 0; shift < 4; shift++) {
		memset(long_text, 'a', shift);
		for (size_t i = shift; i + 4 < sizeof(long_text); i += 4)
			memcpy(long_text + i, "\xf0\x9f\x90\x91\0", 5);
		error_set(&err, -EIO, "%s", long_text);
		assert_true(utf8_valid(err.text, strlen(err.text)));
		assert_in_range(strlen(err.text), sizeof(err.text) - 5, sizeof(err.text) - 1);
		error_prefix(&err, "%s", "p: ");
		assert_true(utf8_valid(err.text, strlen(err.text)));
	}
	error_set(&err, -EIO, "caf\xe9 '\xff\xc3\xa9' \xc3");
	assert_string_equal(err.text, "caf? '?\xc3\xa9' ?");
}

/* Runs log_line with stderr on a pipe; returns what came out. */
static char *logged(enum log_level level, const char *text)
{
	static char buf[8192];
	int ends[2], saved = dup(STDERR_FILENO);
	ssize_t n;

	assert_int_equal(pipe(ends), 0);
	dup2(ends[1], STDERR_FILENO);
	close(ends[1]);
	errno = ERANGE;
	log_line(level, "%s", text);
	assert_int_equal(errno, ERANGE);
	dup2(saved, STDERR_FILENO);
	close(saved);
	n = read(ends[0], buf, sizeof(buf) - 1);
	close(ends[0]);
	buf[n < 0 ? 0 : n] = '\0';
	return buf;
}

static void test_log(void **state)
{
	char long_text[4096];

	log_init("prog", LOG_LEVEL_INFO);
	assert_string_equal(logged(LOG_LEVEL_ERROR, "a=1"), "prog: error: a=1\n");
	assert_string_equal(logged(LOG_LEVEL_DEBUG, "hidden"), "");
	assert_string_equal(logged(LOG_LEVEL_INFO, "x\nprog: error: forged\r\t\x1b[2J\x7f"),
			    "prog: info: x\\nprog: error: forged\\x0d\\t\\x1b[2J\\x7f\n");
	assert_string_equal(logged(LOG_LEVEL_WARNING, "\xc3\xa9 \xc2\x9b \xe9 \xed\xa0\x80 \xff"),
			    "prog: warning: \xc3\xa9 \\xc2\\x9b \\xe9 \\xed\\xa0\\x80 \\xff\n");
	/* Escapes make it four times as long: it is cut, and still one line. */
	memset(long_text, 1, sizeof(long_text) - 1);
	long_text[sizeof(long_text) - 1] = '\0';
	char *line = logged(LOG_LEVEL_INFO, long_text);
	assert_in_range(strlen(line), 4000, 4096);
	assert_string_equal(line + strlen(line) - 4, "...\n");
	assert_ptr_equal(strchr(line, '\n'), line + strlen(line) - 1);
}

/* The prefix appears only when JOURNAL_STREAM names our own stderr. */
static void test_journal(void **state)
{
	int ends[2], saved = dup(STDERR_FILENO);
	char stream[64], buf[64] = "";
	struct stat st;

	assert_int_equal(pipe(ends), 0);
	assert_int_equal(fstat(ends[1], &st), 0);
	snprintf(stream, sizeof(stream), "%llu:%llu", (unsigned long long)st.st_dev,
		 (unsigned long long)st.st_ino);
	setenv("JOURNAL_STREAM", stream, 1);
	dup2(ends[1], STDERR_FILENO);
	log_init("prog", LOG_LEVEL_DEBUG);
	log_debug("x");
	dup2(saved, STDERR_FILENO);
	assert_int_equal(read(ends[0], buf, sizeof(buf) - 1), 18);
	assert_string_equal(buf, "<7>prog: debug: x\n");
	log_init("prog", LOG_LEVEL_DEBUG);
	assert_string_equal(logged(LOG_LEVEL_ERROR, "x"), "prog: error: x\n");
	close(ends[0]);
	close(ends[1]);
	close(saved);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_set),
		cmocka_unit_test(test_utf8),
		cmocka_unit_test(test_log),
		cmocka_unit_test(test_journal),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
