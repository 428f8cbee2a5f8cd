/* SPDX-License-Identifier: BSD-3-Clause */
/* cmdline-config: a configuration file, which says what options say.
 *
 *	{ "loops": 4, "allow-dirs": ["/srv/disks"],
 *	  "blockdevs": [ {…} ], "nbd-servers": [ {…} ], "exports": [ {…} ] }
 *
 * Members are options: the table in cmdline.c says which.  JSON gives the order
 * of members no meaning, so lists are run in the order of section_order, each
 * from its first element to its last, whatever the order in the file.  The file
 * is its owner's word, as the command line is, but it is read strictly: what is
 * not known, of another type or there twice is refused by its path or line.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/json.h"
#include "nbd-server/cmdline-int.h"

#define CONFIG_BYTES_MAX (16u << 20)

/* What refers to something comes behind it. */
static const char *const section_order[] = { "objects", "blockdevs", "nbd-servers", "exports",
					     "chardevs", "monitors", NULL };

static void refuse(const char *path, const char *reason)
	__attribute__((noreturn));

static void refuse(const char *path, const char *reason)
{
	char what[512];

	snprintf(what, sizeof(what), "--config %s", path);
	cmdline_refuse(what, reason);
}

/* -- reading ------------------------------------------------------------------- */

static ssize_t read_all(int fd, char *text, size_t size)
{
	size_t done = 0;

	while (done < size) {
		ssize_t n = read(fd, text + done, size - done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		done += (size_t)n;
	}
	return (ssize_t)done;
}

/* The whole file, malloc'd. */
static char *read_text(const char *path, size_t *len)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
	char *text = fd < 0 ? NULL : malloc(CONFIG_BYTES_MAX + 1);
	ssize_t n = text ? read_all(fd, text, CONFIG_BYTES_MAX + 1) : -errno;

	if (n < 0)
		refuse(path, strerror((int)-n));
	if (n > CONFIG_BYTES_MAX)
		refuse(path, "is larger than 16 MiB");
	close(fd);
	*len = (size_t)n;
	return text;
}

static struct json_object *load(const char *path)
{
	struct json_limits limits = { .bytes = CONFIG_BYTES_MAX, .tokens = 1u << 20 };
	struct error err = ERROR_INIT;
	struct json_object *o;
	char what[2048];
	unsigned line;
	size_t len;
	char *text = read_text(path, &len);

	if (json_parse_document(text, len, &limits, &o, &line, &err)) {
		snprintf(what, sizeof(what), "line %u: %s", line, err.text);
		refuse(path, what);
	}
	free(text);
	if (!json_object_is_type(o, json_type_object))
		refuse(path, "the file must hold one JSON object");
	return o;
}

/* -- members ------------------------------------------------------------------- */

static const struct option_def *find_member(const char *name)
{
	for (unsigned i = 0; i < cmdline_n_options; i++) {
		const struct option_def *d = &cmdline_options[i];

		if (d->name && d->member && !strcmp(d->member, name))
			return d;
	}
	return NULL;
}

/* AT names it in errors: "loops", "allow-dirs[1]". */
static void take_value(struct cmdline *c, const char *path, const struct option_def *d,
		       const char *at, struct json_object *v)
{
	char reason[256];
	enum json_type type = json_object_get_type(v);
	bool flag = type == json_type_boolean && json_object_get_boolean(v);

	if (type == json_type_boolean && !d->arg) {
		if (flag)
			cmdline_take(c, d, NULL);
	} else if (d->arg && (type == json_type_string || type == json_type_int)) {
		cmdline_take(c, d, json_object_get_string(v));
	} else {
		snprintf(reason, sizeof(reason), "Invalid parameter type for '%s', expected: %s",
			 at, d->arg ? "string" : "boolean");
		refuse(path, reason);
	}
}

/* One element of a list. */
static void take_element(struct cmdline *c, const char *path, const struct option_def *d,
			 struct json_object *list, unsigned i)
{
	struct json_object *v = json_object_array_get_idx(list, i);
	char at[128], reason[256];

	snprintf(at, sizeof(at), "%s[%u]", d->member, i);
	if (!d->run) {
		take_value(c, path, d, at, v);
		return;
	}
	if (!json_object_is_type(v, json_type_object)) {
		snprintf(reason, sizeof(reason),
			 "Invalid parameter type for '%s', expected: object", at);
		refuse(path, reason);
	}
	cmdline_queue(c, &(struct setting){ .def = d, .object = v, .index = i });
}

static void take_member(struct cmdline *c, const char *path, const struct option_def *d,
			struct json_object *v)
{
	char reason[256];

	if (!d->list) {
		take_value(c, path, d, d->member, v);
		return;
	}
	if (!json_object_is_type(v, json_type_array)) {
		snprintf(reason, sizeof(reason),
			 "Invalid parameter type for '%s', expected: array", d->member);
		refuse(path, reason);
	}
	for (unsigned i = 0; i < json_object_array_length(v); i++)
		take_element(c, path, d, v, i);
}

void cmdline_take_config(struct cmdline *c, const char *path)
{
	char reason[256];

	if (c->config)
		cmdline_refuse("--config", "may be given once");
	c->config_path = path;
	c->config = load(path);
	json_object_object_foreach(c->config, name, value) {
		const struct option_def *d = find_member(name);

		if (!d) {
			snprintf(reason, sizeof(reason), "Parameter '%.128s' is unexpected", name);
			refuse(path, reason);
		}
		if (!d->run)
			take_member(c, path, d, value);
	}
	for (const char *const *s = section_order; *s; s++) {
		struct json_object *list;

		if (json_object_object_get_ex(c->config, *s, &list))
			take_member(c, path, find_member(*s), list);
	}
}
