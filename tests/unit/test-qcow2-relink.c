/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2_relink() and qcow2_check(): another backing name in the header, and tables looked at. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include <fcntl.h>
#include <json-c/json.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/bytes.h"
#include "format/node.h"
#include "format/qcow2.h"

static char path[64];
static struct graph graph;

static struct node *open_image(bool writable)
{
	struct node_place where = { .graph = &graph, .io = io_blocking() };
	struct error err = ERROR_INIT;
	struct json_object *o;
	struct node *n = NULL;
	char text[300];

	snprintf(text, sizeof(text), "{\"driver\": \"qcow2\", \"read-only\": %s, \"crash-log\": \"off\", \"backing\": null, "
		 "\"file\": {\"driver\": \"file\", \"filename\": \"%s\"}}", writable ? "false" : "true", path);
	o = json_tokener_parse(text);
	if (node_open(&where, o, &n, &err) < 0)
		fail_msg("%s", err.text);
	json_object_put(o);
	return n;
}

static void make(uint32_t cluster_size, const char *backing)
{
	struct qcow2_create c = { .size = 1 << 20, .cluster_size = cluster_size, .backing_file = backing,
				  .backing_format = backing ? "qcow2" : NULL };
	struct error err = ERROR_INIT;
	struct io_file *f = io_open(io_blocking(), path, IO_RDWR | IO_CREATE | IO_TRUNC, &err);

	assert_non_null(f);
	assert_int_equal(qcow2_create(f, &c, &err), 0);
	io_file_unref(f);
}

/* What the file says, read without any of our code. */
static void expect(const char *name)
{
	uint8_t header[104];
	char has[1100] = "";
	int fd = open(path, O_RDONLY);

	assert_int_equal(pread(fd, header, sizeof(header), 0), sizeof(header));
	if (get_be64(header + 8))
		assert_int_equal(pread(fd, has, get_be32(header + 16), get_be64(header + 8)), get_be32(header + 16));
	assert_string_equal(has, name ? name : "");
	close(fd);
}

static void relink(const char *name)
{
	struct node *n = open_image(true);
	struct error err = ERROR_INIT;

	if (qcow2_relink(n, name, "qcow2", &err) < 0)
		fail_msg("%s", err.text);
	expect(name);
	node_unref(n);
	assert_int_equal(graph.close_rc, 0);
	expect(name);
}

/* Short, long, none, again and again: neither the extensions nor the tables are touched. */
static void test_names(void **state)
{
	static char name[1001];
	struct qcow2_check c;
	struct node *n;

	make(65536, "first");
	for (int i = 0; i < 200; i++) {
		memset(name, 'a' + i % 26, sizeof(name) - 1);
		name[1 + i * 37 % 1000] = 0;
		relink(i % 7 == 3 ? NULL : name);
	}
	n = open_image(false);
	assert_int_equal(qcow2_check(n, &c, NULL), 0);
	assert_int_equal(c.damaged, 0);
	assert_int_equal(c.leaked, 0);
	node_unref(n);
}

static void test_an_image_without_a_name(void **state)
{
	make(65536, NULL);
	relink("below");
	relink(NULL);
	relink("below");
}

/* In a small cluster there is no second place: refused, and the old name stays. */
static void test_no_room(void **state)
{
	static char name[1001];
	struct error err = ERROR_INIT;
	struct node *n;

	memset(name, 'x', 1000);
	make(512, "b");
	n = open_image(true);
	assert_true(qcow2_relink(n, name, "qcow2", &err) < 0);
	assert_true(qcow2_relink(n, "", "qcow2", &err) < 0);
	node_unref(n);
	expect("b");
}

static void test_another_format(void **state)
{
	struct error err = ERROR_INIT;
	struct node *n;

	make(65536, "b");
	n = open_image(true);
	assert_true(qcow2_relink(n, "c", "raw", &err) < 0);
	node_unref(n);
	expect("b");
}

/* A refcount that is gone, and one too many. */
static void test_check(void **state)
{
	struct qcow2_check c;
	uint8_t b[8];
	struct node *n;
	uint64_t block;
	int fd;

	make(65536, NULL);
	fd = open(path, O_RDWR);
	assert_int_equal(pread(fd, b, 8, 48), 8);
	assert_int_equal(pread(fd, b, 8, get_be64(b)), 8);
	block = get_be64(b);
	put_be16(b, 0);
	assert_int_equal(pwrite(fd, b, 2, block + 2), 2);
	put_be16(b, 1);
	assert_int_equal(pwrite(fd, b, 2, block + 2 * 100), 2);
	close(fd);
	n = open_image(false);
	assert_int_equal(qcow2_check(n, &c, NULL), 0);
	assert_int_equal(c.damaged, 1);
	assert_int_equal(c.leaked, 1);
	node_unref(n);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_names),
		cmocka_unit_test(test_an_image_without_a_name),
		cmocka_unit_test(test_no_room),
		cmocka_unit_test(test_another_format),
		cmocka_unit_test(test_check),
	};
	int rc;

	snprintf(path, sizeof(path), "/tmp/test-qcow2-relink-%d", getpid());
	graph_init(&graph);
	rc = cmocka_run_group_tests(tests, NULL, NULL);
	unlink(path);
	return rc;
}
