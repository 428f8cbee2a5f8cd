// SPDX-License-Identifier: BSD-3-Clause
/* virtio-blk-options: --disk URI[,key=value...], in QEMU's key=value syntax.
 *
 * A URI holds '=', which ends a key there; so one that comes first is given its key here.
 */
#include "vmm/virtio-blk.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <json-c/json.h>

#include "common/checked.h"
#include "common/keyval.h"
#include "common/uri.h"
#include "vmm/queue.h"

static int on_off(const char *key, const char *text, bool *out, struct error *err)
{
	if (strcmp(text, "on") && strcmp(text, "off"))
		return error_set(err, -EINVAL, "Parameter '%s' expects 'on' or 'off'", key);
	*out = !strcmp(text, "on");
	return 0;
}

static int number(const char *key, const char *text, unsigned min, unsigned max, unsigned *out,
		  struct error *err)
{
	char *end;
	unsigned long v;

	errno = 0;
	v = strtoul(text, &end, 10);
	if (errno || *end || *text < '0' || *text > '9' || v < min || v > max)
		return error_set(err, -EINVAL, "Parameter '%s' expects a number from %u to %u", key,
				 min, max);
	*out = v;
	return 0;
}

static int text_of(const char *key, const char *text, char *out, size_t size, struct error *err)
{
	if (!*text || strlen(text) >= size)
		return error_set(err, -EINVAL, "Parameter '%s' expects 1 to %zu bytes", key, size - 1);
	strcpy(out, text);
	return 0;
}

static int add_uri(struct blk_options *o, unsigned *n, const char *text, struct error *err)
{
	struct uri u;
	int rc = uri_parse(text, &u, err);

	uri_clear(&u);
	if (rc)
		return rc;
	if (*n == DISK_URIS_MAX)
		return error_set(err, -EINVAL, "a disk has at most %u addresses", DISK_URIS_MAX);
	o->uri[*n] = strdup(text);
	return o->uri[(*n)++] ? 0 : error_set(err, -ENOMEM, "out of memory");
}

static int take_uris(struct blk_options *o, struct json_object *v, struct error *err)
{
	unsigned n = 0;
	int rc = 0;

	if (json_object_is_type(v, json_type_string))
		return add_uri(o, &n, json_object_get_string(v), err);
	if (!json_object_is_type(v, json_type_array))
		return error_set(err, -EINVAL, "Invalid parameter 'uri'");
	for (size_t i = 0; i < json_object_array_length(v) && !rc; i++) {
		struct json_object *one = json_object_array_get_idx(v, i);

		rc = json_object_is_type(one, json_type_string)
			? add_uri(o, &n, json_object_get_string(one), err)
			: error_set(err, -EINVAL, "Invalid parameter 'uri.%zu'", i);
	}
	return rc;
}

static int queue_size(const char *text, unsigned *out, struct error *err)
{
	int rc = number("queue-size", text, 4, QUEUE_SIZE_MAX, out, err);

	if (!rc && !is_pow2(*out))
		rc = error_set(err, -EINVAL, "Parameter 'queue-size' expects a power of two");
	return rc;
}

static int take(struct blk_options *o, const char *key, struct json_object *v, struct error *err)
{
	const char *s = json_object_get_string(v);

	if (!strcmp(key, "uri"))
		return take_uris(o, v, err);
	if (!json_object_is_type(v, json_type_string))
		return error_set(err, -EINVAL, "Invalid parameter '%s'", key);
	if (!strcmp(key, "id"))
		return text_of(key, s, o->id, sizeof(o->id), err);
	if (!strcmp(key, "serial"))
		return text_of(key, s, o->serial, sizeof(o->serial), err);
	if (!strcmp(key, "read-only"))
		return on_off(key, s, &o->read_only, err);
	if (!strcmp(key, "queues"))
		return number(key, s, 1, BLK_QUEUES_MAX, &o->queues, err);
	if (!strcmp(key, "queue-size"))
		return queue_size(s, &o->queue_size, err);
	if (!strcmp(key, "reconnect-delay"))
		return number(key, s, 0, 1u << 30, &o->reconnect_delay, err);
	return error_set(err, -EINVAL, "Invalid parameter '%s'", key);
}

static struct json_object *parse(const char *text, struct error *err)
{
	struct json_object *o;
	char *keyed;

	if (!uri_is_nbd(text))
		return keyval_parse(text, NULL, err);
	if (asprintf(&keyed, "uri.0=%s", text) < 0) {
		error_set(err, -ENOMEM, "out of memory");
		return NULL;
	}
	o = keyval_parse(keyed, NULL, err);
	free(keyed);
	return o;
}

int blk_parse(const char *text, struct blk_options *o, struct error *err)
{
	struct json_object *all = parse(text, err);
	int rc = 0;

	*o = (struct blk_options){ .queue_size = 256 };
	if (!all)
		return -EINVAL;
	json_object_object_foreach(all, key, v) {
		if ((rc = take(o, key, v, err)))
			break;
	}
	json_object_put(all);
	if (!rc && !o->uri[0])
		rc = error_set(err, -EINVAL, "Parameter 'uri' is missing");
	if (rc)
		blk_options_clear(o);
	return rc;
}

void blk_options_clear(struct blk_options *o)
{
	for (unsigned i = 0; o->uri[i]; i++) {
		free(o->uri[i]);
		o->uri[i] = NULL;
	}
}
