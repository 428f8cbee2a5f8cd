/* SPDX-License-Identifier: BSD-3-Clause */
/* blkdebug: a filter that fails requests on purpose, for tests.
 *
 * Rules are QEMU's inject-error with the event "none", that is, always in force:
 * a request of one of the rule's kinds that touches its sector gets the rule's
 * errno and does not reach the child.  Rules of one shot go away when used.  The
 * newest rule wins, as in QEMU.  max-transfer and its siblings cut requests.
 */
#include <errno.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

#include "common/checked.h"
#include "common/options.h"
#include "format/filter.h"

#define RULES_MAX 256

enum blkdebug_kind { KIND_READ, KIND_WRITE, KIND_ZERO, KIND_DISCARD, KIND_FLUSH, KIND_STATUS };

static const char *const kind_names[] = {
	"read", "write", "write-zeroes", "discard", "flush", "block-status", NULL,
};

struct rule {
	unsigned kinds;			/* 1 << enum blkdebug_kind */
	int error;			/* positive; 0: this rule shields from older ones */
	uint64_t sector;		/* of 512 bytes; UINT64_MAX: every one */
	bool once, immediately, used;
};

struct blkdebug {
	struct rule *rules;
	unsigned n;
	uint64_t max_transfer, max_zero, max_discard;	/* bytes, 0: no limit */
};

static int take_rule(struct json_object *o, struct rule *r, struct error *err)
{
	static const char *const unsupported[] = { "state", NULL };
	static const char *const events[] = { "none", NULL };
	uint64_t error = EIO;
	int event, kind = -1, rc = opts_require(o, "event", err);

	r->sector = UINT64_MAX;
	for (unsigned i = 0; unsupported[i] && !rc; i++)
		if (json_object_object_get_ex(o, unsupported[i], NULL))
			rc = error_set(err, -ENOTSUP, "blkdebug: the option 'inject-error.%s' is not supported",
				       unsupported[i]);
	if (!rc)
		rc = opts_enum(o, "event", events, &event, err);
	if (!rc)
		rc = opts_enum(o, "iotype", kind_names, &kind, err);
	if (!rc)
		rc = opts_u64(o, "errno", &error, err);
	if (!rc)
		rc = opts_u64(o, "sector", &r->sector, err);
	if (!rc)
		rc = opts_bool(o, "once", &r->once, err);
	if (!rc)
		rc = opts_bool(o, "immediately", &r->immediately, err);
	if (!rc)
		rc = opts_end(o, err);
	if (!rc && error > 4095)
		rc = error_set(err, -EINVAL, "Parameter 'errno' is out of range");
	r->error = (int)error;
	r->kinds = kind >= 0 ? 1u << kind : (1u << KIND_STATUS) - 1;
	return rc;
}

static int take_rules(struct blkdebug *s, struct json_object *opts, struct error *err)
{
	struct json_object *list = NULL;
	int rc = opts_value(opts, "inject-error", &list, err);
	size_t n;

	if (rc || !list)
		return rc;
	n = json_object_is_type(list, json_type_array) ? json_object_array_length(list) : RULES_MAX + 1;
	if (n > RULES_MAX)
		rc = error_set(err, -EINVAL, "Invalid parameter type for 'inject-error', expected: array");
	s->rules = rc ? NULL : calloc(n + 1, sizeof(*s->rules));
	if (!rc && !s->rules)
		rc = error_set(err, -ENOMEM, "Out of memory");
	for (size_t i = 0; i < n && !rc; i++) {
		struct json_object *o = json_object_array_get_idx(list, i);

		if (!json_object_is_type(o, json_type_object))
			rc = error_set(err, -EINVAL, "Invalid parameter type for 'inject-error', expected: object");
		else
			rc = take_rule(o, &s->rules[s->n++], err);
	}
	json_object_put(list);
	return rc;
}

static int take_limit(struct json_object *opts, const char *key, uint64_t *out, struct error *err)
{
	int rc = opts_u64(opts, key, out, err);

	if (!rc && (*out > INT32_MAX || !is_aligned(*out, 512)))
		rc = error_set(err, -EINVAL, "Cannot meet constraints with %s %" PRIu64, key, *out);
	return rc;
}

static int blkdebug_open(struct node *n, struct json_object *opts, struct error *err)
{
	static const char *const unsupported[] = {
		"config", "set-state", "align", "opt-write-zero", "opt-discard",
		"take-child-perms", "unshare-child-perms", NULL,
	};
	struct blkdebug *s = calloc(1, sizeof(*s));
	int rc = 0;

	if (!s)
		return error_set(err, -ENOMEM, "Out of memory");
	n->state = s;
	for (unsigned i = 0; unsupported[i] && !rc; i++)
		if (json_object_object_get_ex(opts, unsupported[i], NULL))
			rc = error_set(err, -ENOTSUP, "blkdebug: the option '%s' is not supported",
				       unsupported[i]);
	if (!rc)
		rc = take_rules(s, opts, err);
	if (!rc)
		rc = take_limit(opts, "max-transfer", &s->max_transfer, err);
	if (!rc)
		rc = take_limit(opts, "max-write-zero", &s->max_zero, err);
	if (!rc)
		rc = take_limit(opts, "max-discard", &s->max_discard, err);
	return rc ? rc : filter_open_child(n, opts, "image", err);
}

static void blkdebug_close(struct node *n)
{
	struct blkdebug *s = n->state;

	free(s->rules);
	free(s);
	n->state = NULL;
}

static bool rule_matches(const struct rule *r, enum blkdebug_kind kind, uint64_t off, uint64_t len)
{
	uint64_t at = r->sector > INT64_MAX / 512 ? UINT64_MAX : r->sector * 512;

	if (r->used || !(r->kinds & (1u << kind)))
		return false;
	return r->sector == UINT64_MAX || (len && at >= off && at - off < len);
}

/* 0, or what the request fails with. */
static int inject(struct node *n, enum blkdebug_kind kind, uint64_t off, uint64_t len)
{
	struct blkdebug *s = n->state;

	for (unsigned i = s->n; i--;) {
		struct rule *r = &s->rules[i];

		if (!rule_matches(r, kind, off, len))
			continue;
		r->used = r->once;
		if (!r->immediately)
			io_sleep(n->io, 0);
		return -r->error;
	}
	return 0;
}

static uint64_t piece(uint64_t len, uint64_t max)
{
	return max ? min_u64(len, max) : len;
}

static int blkdebug_read(struct node *n, void *buf, uint64_t off, size_t len)
{
	const struct blkdebug *s = n->state;
	int rc = 0;

	for (uint64_t now; len && !rc; off += now, len -= now) {
		now = piece(len, s->max_transfer);
		rc = inject(n, KIND_READ, off, now);
		if (!rc)
			rc = filter_read(n, buf, off, now);
		buf = (char *)buf + now;
	}
	return rc;
}

static int blkdebug_write(struct node *n, const void *buf, uint64_t off, size_t len, unsigned flags)
{
	const struct blkdebug *s = n->state;
	int rc = 0;

	for (uint64_t now; len && !rc; off += now, len -= now) {
		now = piece(len, s->max_transfer);
		rc = inject(n, KIND_WRITE, off, now);
		if (!rc)
			rc = filter_write(n, buf, off, now, flags);
		buf = (const char *)buf + now;
	}
	return rc;
}

static int blkdebug_zero(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
	const struct blkdebug *s = n->state;
	int rc = 0;

	for (uint64_t now; len && !rc; off += now, len -= now) {
		now = piece(len, s->max_zero);
		rc = inject(n, KIND_ZERO, off, now);
		if (!rc)
			rc = filter_zero(n, off, now, flags);
	}
	return rc;
}

static int blkdebug_discard(struct node *n, uint64_t off, uint64_t len)
{
	const struct blkdebug *s = n->state;
	int rc = 0;

	for (uint64_t now; len && !rc; off += now, len -= now) {
		now = piece(len, s->max_discard);
		rc = inject(n, KIND_DISCARD, off, now);
		if (!rc)
			rc = filter_discard(n, off, now);
	}
	return rc;
}

static int blkdebug_flush(struct node *n)
{
	int rc = inject(n, KIND_FLUSH, 0, 0);

	return rc ? rc : filter_flush(n);
}

static int blkdebug_map(struct node *n, uint64_t off, uint64_t len, struct extents *x)
{
	int rc = inject(n, KIND_STATUS, off, len);

	return rc ? rc : filter_map(n, off, len, x);
}

static const char *const blkdebug_options[] = {
	"image", "inject-error", "max-transfer", "max-write-zero", "max-discard", NULL,
};

const struct node_driver blkdebug_driver = {
	.name = "blkdebug",
	.options = blkdebug_options,
	.filter = true,
	.open = blkdebug_open,
	.close = blkdebug_close,
	.read = blkdebug_read,
	.write = blkdebug_write,
	.zero = blkdebug_zero,
	.discard = blkdebug_discard,
	.flush = blkdebug_flush,
	.map = blkdebug_map,
	.truncate = filter_truncate,
	.child_is_image = true,
	.child_perm = filter_child_perm,
};
