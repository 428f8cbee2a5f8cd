// SPDX-License-Identifier: BSD-3-Clause
/* Fuzzes the control socket: the input is what a QMP client sends, all at once, after
 * it has negotiated (unless the first byte is '!').
 *
 * Commands run for real, in a directory of their own.  Inputs that name what lies
 * outside it (paths with a slash, other machines, descriptors) are not run.  After each
 * input all that it made is deleted again.  What comes back must be a row of messages.
 *
 * Half of the mutations are commands made from the daemon's own table: names and types
 * right, values at the edges.
 */
#include "tests/fuzz/inproc.h"

#include <sys/resource.h>

#include "common/json.h"
#include "nbd-server/qmp.h"

#define FILE_MAX (64u << 20)
#define NEGOTIATE "{'execute':'qmp_capabilities'}\n"

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	static char *args[] = { "merinod", "--sandbox", "off", "--chardev", "socket,id=m,path=qmp,server=on,wait=off", "--monitor", "m",
		"--pidfile", "pid", NULL };
	struct rlimit limit = { FILE_MAX, FILE_MAX };

	signal(SIGXFSZ, SIG_IGN);
	fuzz_assert(!setrlimit(RLIMIT_FSIZE, &limit));
	inproc_enter_dir();
	inproc_make_raw("raw", 1 << 20);
	inproc_make_qcow2("qcow2", 1 << 20);
	inproc_start(args);
	return 0;
}

/* -- after each input ---------------------------------------------------------------- */

static struct json_object *run(const char *command, const char *key, const char *value)
{
	struct json_object *args = key ? json_object_new_object() : NULL, *ret = NULL;
	struct error err = ERROR_INIT;

	if (key)
		json_object_object_add(args, key, json_object_new_string(value));
	qmp_run(command, args, &ret, &err);
	json_object_put(args);
	return ret;
}

/* DEL of every MEMBER that LIST tells of; returns how many there are. */
static size_t delete_all(const char *list, const char *member, const char *del, const char *key)
{
	struct json_object *all = run(list, NULL, NULL);
	size_t n = all ? json_object_array_length(all) : 0;

	for (size_t i = 0; i < n; i++)
		json_object_put(run(del, key, json_object_get_string(
			json_object_object_get(json_object_array_get_idx(all, i), member))));
	json_object_put(all);
	return n;
}

static void clean_up(void)
{
	json_object_put(run("nbd-server-stop", NULL, NULL));
	delete_all("query-block-exports", "id", "block-export-del", "id");
	delete_all("query-jobs", "id", "job-cancel", "id");
	/* Cancelled ones may still wait for a file.  Nothing of them may be left: what a coroutine
	 * holds looks like a leak. */
	for (unsigned i = 0; i < 10000 && delete_all("query-jobs", "id", "job-dismiss", "id"); i++) {
		io_sleep(loop_io(loop_self()), 1000000);
		delete_all("query-jobs", "id", "job-cancel", "id");
	}
	for (unsigned i = 0; i < 64 && delete_all("query-named-block-nodes", "node-name", "blockdev-del", "node-name"); i++)
		;
	for (unsigned i = 0; i < 4; i++) {
		char id[] = { 'o', '0' + i, 0 };

		json_object_put(run("object-del", "id", id));
	}
}

/* Lines of one object each, of a kind that the protocol knows. */
static void check_answer(const char *text, bool whole)
{
	const char *end;
	unsigned n = 0;

	for (; (end = strstr(text, "\r\n")); text = end + 2, n++) {
		char *line = strndup(text, end - text);
		struct json_object *o = json_tokener_parse(line);

		fuzz_assert(json_object_is_type(o, json_type_object));
		fuzz_assert(n ? json_object_object_get_ex(o, "return", NULL) || json_object_object_get_ex(o, "error", NULL) ||
			    json_object_object_get_ex(o, "event", NULL) : json_object_object_get_ex(o, "QMP", NULL));
		json_object_put(o);
		free(line);
	}
	fuzz_assert(n && (!*text || !whole));
}

/* Would it leave the directory? */
static bool is_harmless(const uint8_t *data, size_t size)
{
	static const char *const words[] = { "/", "\\", "inet", "vsock", "fd", "reconnect", "timeout", "..", "\"@" };

	for (unsigned i = 0; i < sizeof(words) / sizeof(words[0]); i++)
		if (memmem(data, size, words[i], strlen(words[i])))
			return false;
	return true;
}

int fuzz_input(const uint8_t *data, size_t size)
{
	static char answer[4 << 20];
	static uint8_t input[1 << 17];
	bool bare = size && data[0] == '!';
	size_t n = bare ? 0 : strlen(NEGOTIATE);
	int fd;

	if (!is_harmless(data, size) || size > sizeof(input) - n)
		return -1;
	memcpy(input, NEGOTIATE, n);
	memcpy(input + n, data + bare, size - bare);
	fd = inproc_connect("qmp");
	n = inproc_exchange(fd, input, n + size - bare, (uint8_t *)answer, sizeof(answer) - 1);
	close(fd);
	answer[n] = 0;
	if (strlen(answer) == n)
		check_answer(answer, n < sizeof(answer) - 1);
	inproc_call(clean_up);
	return 0;
}

/* -- mutations -------------------------------------------------------------------- */

static uint64_t random_state;

static uint64_t random_next(uint64_t below)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state % below;
}

#define PICK(a) (a)[random_next(sizeof(a) / sizeof((a)[0]))]

static struct json_object *make_object(const struct qmp_arg *args, unsigned depth);

static struct json_object *make_node(unsigned depth)
{
	static const char *const drivers[] = { "raw", "qcow2", "file", "null-co", "throttle", "blkdebug", "copy-on-read",
		"compress", "preallocate" };
	static const char *const files[] = { "raw", "qcow2", "new", "missing" };
	struct json_object *o = json_object_new_object();
	const char *driver = PICK(drivers);

	json_object_object_add(o, "driver", json_object_new_string(driver));
	if (!strcmp(driver, "file"))
		json_object_object_add(o, "filename", json_object_new_string(PICK(files)));
	else if (!strcmp(driver, "null-co"))
		json_object_object_add(o, "size", json_object_new_int64((int64_t)1 << random_next(63)));
	else if (depth < 4)
		json_object_object_add(o, "file", random_next(3) ? make_node(depth + 1) : json_object_new_string("n0"));
	return o;
}

static struct json_object *make_value(const struct qmp_arg *a, unsigned depth)
{
	static const char *const names[] = { "n0", "n1", "e0", "b0", "b1", "o0", "", "raw", "qcow2", "off", "#block000" };
	static const int64_t numbers[] = { 0, 1, -1, 511, 512, 65536, 1 << 20, INT32_MAX, INT64_MAX, INT64_MIN };
	enum qmp_type type = random_next(24) ? a->type : random_next(QMP_ANY + 1);
	struct json_object *o;
	unsigned n = 0;

	switch (type) {
	case QMP_STR:
		while (a->values && a->values[n])
			n++;
		return json_object_new_string(n && random_next(16) ? a->values[random_next(n)] : PICK(names));
	case QMP_BOOL:
		return json_object_new_boolean(random_next(2));
	case QMP_INT: case QMP_UINT:
		return json_object_new_int64(random_next(2) ? PICK(numbers) : (int64_t)random_next(1 << 20));
	case QMP_ARRAY:
		o = json_object_new_array();
		for (n = random_next(4); n && depth < 5; n--)
			json_object_array_add(o, a->item ? make_value(a->item, depth + 1) : make_node(depth));
		return o;
	case QMP_STR_OR_OBJECT:
		if (random_next(2))
			return json_object_new_string(PICK(names));
		/* fall through */
	case QMP_OBJECT:
		return a->members && depth < 5 ? make_object(a->members, depth + 1) : make_node(depth);
	default:
		return random_next(2) ? json_object_new_string(PICK(names)) : NULL;
	}
}

static struct json_object *make_object(const struct qmp_arg *args, unsigned depth)
{
	struct json_object *o = json_object_new_object();

	for (; args && args->name; args++)
		if (random_next(8) < (args->required ? 7 : 3))
			json_object_object_add(o, args->name, make_value(args, depth));
	return o;
}

static struct json_object *make_command(void)
{
	struct json_object *o = json_object_new_object(), *args;
	const struct qmp_command *c;
	size_t n = 0;

	while (qmp_commands[n].name)
		n++;
	c = &qmp_commands[random_next(n)];
	args = make_object(c->args, 0);
	if (c->open_args) {
		struct json_object *node = make_node(0);

		json_object_object_foreach(node, key, value)
			json_object_object_add(args, key, json_object_get(value));
		json_object_put(node);
	}
	json_object_object_add(o, "execute", json_object_new_string(c->name));
	json_object_object_add(o, "arguments", args);
	return o;
}

size_t fuzz_change(uint8_t *data, size_t size, size_t max, unsigned seed)
{
	struct json_object *o;
	const char *text;
	size_t len, at = size;

	random_state = seed | 1ull << 40;
	if (random_next(2))
		return fuzz_mutate(data, size, max);
	o = make_command();
	text = json_write(o);
	len = strlen(text);
	for (size_t i = 0; i < size; i++)	/* at one of the ends of a line */
		if (data[i] == '\n' && !random_next(4))
			at = i + 1;
	if (len + 1 <= max - size) {
		memmove(data + at + len + 1, data + at, size - at);
		memcpy(data + at, text, len);
		data[at + len] = '\n';
		size += len + 1;
	}
	json_object_put(o);
	return size;
}
