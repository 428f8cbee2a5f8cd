/* SPDX-License-Identifier: BSD-3-Clause */
/* The handshake on the blocking table: a client's bytes are all there before it
 * begins, and what the server says is read afterwards.  Exports are the test's.
 *
 * tests/nbd looks at the same from outside; here are bounds, the agreement, and
 * bytes that no sane client sends.
 */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "nbd-server/negotiate.c"
#include "nbd-server/negotiate-options.c"
#include "nbd-server/meta-query.c"

/* -- exports ------------------------------------------------------------------- */

static struct export_context contexts[] = {
	{ CONTEXT_ALLOCATION, NULL, (char *)"base:allocation" },
	{ CONTEXT_DEPTH, NULL, (char *)"qemu:allocation-depth" },
	{ CONTEXT_BITMAP, NULL, (char *)"qemu:dirty-bitmap:b" },
};

static const struct export_context *by_name[] = { &contexts[0], &contexts[1], &contexts[2] };

static struct export two[] = {
	{ .serial = 1, .name = (char *)"a", .size = 1 << 20, .flags = 0x01ed, .block_min = 1,
	  .block_preferred = 4096, .block_max = NBD_REQUEST_MAX, .contexts = contexts, .by_name = by_name,
	  .n_contexts = 3 },
	{ .serial = 2, .name = (char *)"", .size = 1 << 21, .flags = 0x0001, .block_min = 1,
	  .block_preferred = 4096, .block_max = NBD_REQUEST_MAX, .contexts = contexts, .by_name = by_name,
	  .n_contexts = 1 },
};

struct export *export_find_name(const char *name, size_t len)
{
	for (unsigned i = 0; i < 2; i++) {
		if (strlen(two[i].name) == len && (!len || !memcmp(two[i].name, name, len)))
			return &two[i];
	}
	return NULL;
}

struct export *export_find_serial(uint64_t serial)
{
	for (unsigned i = 0; i < 2; i++) {
		if (two[i].serial == serial)
			return &two[i];
	}
	return NULL;
}

struct export *export_next(uint64_t serial)
{
	for (unsigned i = 0; i < 2; i++) {
		if (two[i].serial > serial)
			return &two[i];
	}
	return NULL;
}

void export_ref(struct export *e)
{
	e->refs++;
}

/* -- a client -------------------------------------------------------------------- */

struct script {
	uint8_t bytes[256 << 10];
	size_t n;
};

static void put(struct script *s, const void *p, size_t n)
{
	assert_true(n <= sizeof(s->bytes) - s->n);
	if (n)
		memcpy(s->bytes + s->n, p, n);
	s->n += n;
}

static void put32(struct script *s, uint32_t v)
{
	uint8_t b[4];

	put_be32(b, v);
	put(s, b, sizeof(b));
}

static void begin(struct script *s)
{
	s->n = 0;
	put32(s, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
}

static void option(struct script *s, uint32_t type, const void *p, size_t n)
{
	put(s, "IHAVEOPT", 8);
	put32(s, type);
	put32(s, (uint32_t)n);
	put(s, p, n);
}

static void option_go(struct script *s, uint32_t type, const char *name)
{
	struct script *p = calloc(1, sizeof(*p));

	put32(p, (uint32_t)strlen(name));
	put(p, name, strlen(name));
	put(p, "\0\0", 2);
	option(s, type, p->bytes, p->n);
	free(p);
}

static void option_meta(struct script *s, uint32_t type, const char *name, const char *query)
{
	struct script *p = calloc(1, sizeof(*p));

	put32(p, (uint32_t)strlen(name));
	put(p, name, strlen(name));
	put32(p, 1);
	put32(p, (uint32_t)strlen(query));
	put(p, query, strlen(query));
	option(s, type, p->bytes, p->n);
	free(p);
}

/* Runs the handshake on a script; REPLIES (may be NULL) gets what the server said. */
static int run(const struct script *s, struct agreement *a, struct script *replies)
{
	int fds[2], size = 4 << 20, rc;
	ssize_t n;

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	for (unsigned i = 0; i < 2; i++)
		setsockopt(fds[i], SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size));
	assert_int_equal(send(fds[1], s->bytes, s->n, MSG_DONTWAIT), (ssize_t)s->n);
	shutdown(fds[1], SHUT_WR);
	*a = (struct agreement){ .listener = NULL };
	stream_init(&a->stream, io_blocking(), fds[0]);
	rc = negotiate(a);
	stream_close(&a->stream);
	if (replies)
		replies->n = 0;
	while (replies && (n = recv(fds[1], replies->bytes + replies->n,
				    sizeof(replies->bytes) - replies->n, 0)) > 0)
		replies->n += (size_t)n;
	close(fds[1]);
	return rc;
}

/* The type of the I-th option reply. */
static uint32_t reply_type(const struct script *r, unsigned i)
{
	size_t at = 18;

	while (at + 20 <= r->n) {
		assert_true(get_be64(r->bytes + at) == NBD_REP_MAGIC);
		if (!i--)
			return get_be32(r->bytes + at + 12);
		at += 20 + get_be32(r->bytes + at + 16);
	}
	fail_msg("no such reply");
	return 0;
}

static struct script client, server;
static struct agreement agreed;

/* -- tests ------------------------------------------------------------------------ */

static void test_what_follows_go_is_kept(void **state)
{
	begin(&client);
	option(&client, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
	option_meta(&client, NBD_OPT_SET_META_CONTEXT, "a", "qemu:dirty-bitmap:b");
	option_go(&client, NBD_OPT_GO, "a");
	put(&client, "first request", 13);
	assert_int_equal(run(&client, &agreed, NULL), 0);
	assert_ptr_equal(agreed.export, &two[0]);
	assert_true(agreed.structured);
	assert_int_equal(agreed.n_contexts, 1);
	assert_int_equal(agreed.contexts[0], 2);
	assert_int_equal(agreed.early_len, 13);
	assert_memory_equal(agreed.early, "first request", 13);
	free(agreed.early);
}

static void test_contexts_are_of_one_export(void **state)
{
	begin(&client);
	option(&client, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
	option_meta(&client, NBD_OPT_SET_META_CONTEXT, "a", "base:allocation");
	option_go(&client, NBD_OPT_GO, "");
	assert_int_equal(run(&client, &agreed, NULL), 0);
	assert_ptr_equal(agreed.export, &two[1]);
	assert_int_equal(agreed.n_contexts, 0);
	assert_null(agreed.early);
}

static void test_no_df_without_structured_replies(void **state)
{
	begin(&client);
	option(&client, NBD_OPT_EXPORT_NAME, "a", 1);
	assert_int_equal(run(&client, &agreed, &server), 0);
	assert_int_equal(server.n, 18 + 10);
	assert_int_equal(get_be16(server.bytes + 26), 0x01ed & ~NBD_FLAG_SEND_DF);
}

static void test_zeroes_for_old_clients(void **state)
{
	begin(&client);
	put_be32(client.bytes, NBD_FLAG_FIXED_NEWSTYLE);
	option(&client, NBD_OPT_EXPORT_NAME, "a", 1);
	assert_int_equal(run(&client, &agreed, &server), 0);
	assert_int_equal(server.n, 18 + 134);
	assert_true(bytes_are_zero(server.bytes + 28, 124));
}

/* Before the fixed style there was one option. */
static void test_old_style_has_one_option(void **state)
{
	begin(&client);
	put_be32(client.bytes, 0);
	option(&client, NBD_OPT_LIST, NULL, 0);
	assert_true(run(&client, &agreed, &server) < 0);
	assert_int_equal(server.n, 18);
}

static void test_long_option_is_skipped(void **state)
{
	static const uint8_t zeroes[NBD_OPTION_MAX + 1];

	begin(&client);
	option(&client, 0x7777, zeroes, sizeof(zeroes));
	option(&client, NBD_OPT_LIST, zeroes, sizeof(zeroes));
	option_go(&client, NBD_OPT_GO, "a");
	assert_int_equal(run(&client, &agreed, &server), 0);
	assert_int_equal(reply_type(&server, 0), NBD_REP_ERR_TOO_BIG);
	assert_int_equal(reply_type(&server, 1), NBD_REP_ERR_TOO_BIG);
}

static void test_endless_option_ends_it(void **state)
{
	begin(&client);
	put(&client, "IHAVEOPT", 8);
	put32(&client, NBD_OPT_LIST);
	put32(&client, HANDSHAKE_DRAIN_MAX + 1);
	assert_int_equal(run(&client, &agreed, &server), -EMSGSIZE);
	assert_int_equal(server.n, 18);
}

static void test_options_are_counted(void **state)
{
	begin(&client);
	for (unsigned i = 0; i <= HANDSHAKE_OPTIONS_MAX; i++)
		option(&client, NBD_OPT_STARTTLS, NULL, 0);
	option_go(&client, NBD_OPT_GO, "a");
	assert_int_equal(run(&client, &agreed, NULL), -E2BIG);
}

static void test_queries_are_counted(void **state)
{
	struct script *p = calloc(1, sizeof(*p));

	begin(&client);
	option(&client, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
	put32(p, 1);
	put(p, "a", 1);
	put32(p, HANDSHAKE_QUERIES_MAX + 1);
	for (unsigned i = 0; i <= HANDSHAKE_QUERIES_MAX; i++)
		put32(p, 0);
	option(&client, NBD_OPT_LIST_META_CONTEXT, p->bytes, p->n);
	free(p);
	run(&client, &agreed, &server);
	assert_int_equal(reply_type(&server, 1), NBD_REP_ERR_TOO_BIG);
}

static void a_whole_script(struct script *s)
{
	begin(s);
	option(s, NBD_OPT_LIST, NULL, 0);
	option(s, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
	option_meta(s, NBD_OPT_LIST_META_CONTEXT, "a", "qemu:");
	option_meta(s, NBD_OPT_SET_META_CONTEXT, "a", "base:allocation");
	option_go(s, NBD_OPT_INFO, "a");
	option_go(s, NBD_OPT_GO, "a");
}

/* Every script that differs in a few bytes ends one way or the other. */
static void test_changed_bytes(void **state)
{
	unsigned agreements = 0;

	srandom(1);
	for (unsigned i = 0; i < 4000; i++) {
		a_whole_script(&client);
		for (long k = random() % 4; k >= 0; k--)
			client.bytes[(size_t)random() % client.n] = (uint8_t)random();
		if (random() % 4 == 0)
			client.n = (size_t)random() % client.n;
		if (!run(&client, &agreed, NULL)) {
			agreements++;
			free(agreed.early);
		}
	}
	assert_true(agreements > 0 && agreements < 4000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_what_follows_go_is_kept),
		cmocka_unit_test(test_contexts_are_of_one_export),
		cmocka_unit_test(test_no_df_without_structured_replies),
		cmocka_unit_test(test_zeroes_for_old_clients),
		cmocka_unit_test(test_old_style_has_one_option),
		cmocka_unit_test(test_long_option_is_skipped),
		cmocka_unit_test(test_endless_option_ends_it),
		cmocka_unit_test(test_options_are_counted),
		cmocka_unit_test(test_queries_are_counted),
		cmocka_unit_test(test_changed_bytes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
