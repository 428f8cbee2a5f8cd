/* SPDX-License-Identifier: BSD-3-Clause */
/* throttle-group: limits that several disks share: leaky buckets.
 *
 * Every limit is a bucket into which requests pour (bytes, or operations) and that
 * leaks at the rate allowed.  A request waits while a bucket is over full.  Without
 * a burst a bucket holds a tenth of a second; with one, burst times its length, and
 * a second bucket sees to it that the burst's own rate is kept.
 *
 * All members of a group are on one loop, which owns the buckets; who is a member,
 * and which loop that is, is under a lock, since the control path asks.
 */
#include "format/throttle-int.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/checked.h"
#include "common/options.h"

#define VALUE_MAX 1000000000000000ull	/* QEMU's */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* -- options ------------------------------------------------------------------- */

static const char *const bucket_names[BUCKETS] = {
	[BUCKET_BPS_TOTAL] = "bps-total", [BUCKET_BPS_READ] = "bps-read",
	[BUCKET_BPS_WRITE] = "bps-write", [BUCKET_IOPS_TOTAL] = "iops-total",
	[BUCKET_IOPS_READ] = "iops-read", [BUCKET_IOPS_WRITE] = "iops-write",
};

static int take_number(struct json_object *o, const char *prefix, const char *name,
		       const char *suffix, double *out, struct error *err)
{
	uint64_t v = (uint64_t)*out;
	char key[64];
	int rc;

	snprintf(key, sizeof(key), "%s%s%s", prefix, name, suffix);
	rc = opts_u64(o, key, &v, err);
	if (!rc && v > VALUE_MAX)
		rc = error_set(err, -ERANGE, "bps/iops/max values must be within [0, %llu]", VALUE_MAX);
	if (!rc)
		*out = (double)v;
	return rc;
}

static int take_limits(struct throttle_group *g, struct json_object *o, const char *prefix,
		       struct error *err)
{
	int rc = 0;

	for (unsigned i = 0; i < BUCKETS && !rc; i++) {
		struct bucket *b = &g->buckets[i];

		rc = take_number(o, prefix, bucket_names[i], "", &b->avg, err);
		if (!rc)
			rc = take_number(o, prefix, bucket_names[i], "-max", &b->max, err);
		if (!rc)
			rc = take_number(o, prefix, bucket_names[i], "-max-length", &b->length, err);
	}
	return rc ? rc : take_number(o, prefix, "iops-size", "", &g->op_size, err);
}

static bool both(const struct throttle_group *g, unsigned total, bool max)
{
	const struct bucket *b = &g->buckets[total];

	return max ? b[0].max && (b[1].max || b[2].max) : b[0].avg && (b[1].avg || b[2].avg);
}

static int check_bucket(const struct bucket *b, struct error *err)
{
	if (b->length < 1)
		return error_set(err, -EINVAL, "the burst length cannot be 0");
	if (b->length > 1 && !b->max)
		return error_set(err, -EINVAL, "burst length set without burst rate");
	if (b->max && b->length > (double)VALUE_MAX / b->max)
		return error_set(err, -EINVAL, "burst length too high for this burst rate");
	if (b->max && !b->avg)
		return error_set(err, -EINVAL, "bps_max/iops_max require corresponding bps/iops values");
	if (b->max && b->max < b->avg)
		return error_set(err, -EINVAL, "bps_max/iops_max cannot be lower than bps/iops");
	return 0;
}

static int check_limits(const struct throttle_group *g, struct error *err)
{
	int rc = 0;

	if (both(g, BUCKET_BPS_TOTAL, false) || both(g, BUCKET_IOPS_TOTAL, false) ||
	    both(g, BUCKET_BPS_TOTAL, true) || both(g, BUCKET_IOPS_TOTAL, true))
		return error_set(err, -EINVAL, "bps/iops/max total values and read/write values cannot be used at the same time");
	if (g->op_size && !g->buckets[BUCKET_IOPS_TOTAL].avg && !g->buckets[BUCKET_IOPS_READ].avg &&
	    !g->buckets[BUCKET_IOPS_WRITE].avg)
		return error_set(err, -EINVAL, "iops size requires an iops value to be set");
	for (unsigned i = 0; i < BUCKETS && !rc; i++)
		rc = check_bucket(&g->buckets[i], err);
	return rc;
}

static void group_destroy(void *data)
{
	struct throttle_group *g = data;

	free(g);
}

static int group_create(const char *id, struct json_object *opts, void **data, struct error *err)
{
	struct throttle_group *g = calloc(1, sizeof(*g));
	struct json_object *limits = NULL;
	int rc;

	if (!g)
		return error_set(err, -ENOMEM, "Out of memory");
	for (unsigned i = 0; i < BUCKETS; i++)
		g->buckets[i].length = 1;
	g->last = loop_now();
	rc = take_limits(g, opts, "x-", err);
	if (!rc)
		rc = opts_object(opts, "limits", &limits, err);
	if (!rc && limits)
		rc = opts_set_path(limits, opts, "limits") ? -ENOMEM : take_limits(g, limits, "", err);
	if (!rc && limits)
		rc = opts_end(limits, err);
	json_object_put(limits);
	if (!rc)
		rc = check_limits(g, err);
	if (rc)
		group_destroy(g);
	else
		*data = g;
	return rc;
}

struct object_class throttle_group_class = {
	.name = "throttle-group",
	.options = (const char *const[]){
		"limits",
		"x-bps-total", "x-bps-total-max", "x-bps-total-max-length",
		"x-bps-read", "x-bps-read-max", "x-bps-read-max-length",
		"x-bps-write", "x-bps-write-max", "x-bps-write-max-length",
		"x-iops-total", "x-iops-total-max", "x-iops-total-max-length",
		"x-iops-read", "x-iops-read-max", "x-iops-read-max-length",
		"x-iops-write", "x-iops-write-max", "x-iops-write-max-length",
		"x-iops-size", NULL },
	.create = group_create,
	.destroy = group_destroy,
};

/* -- members ------------------------------------------------------------------- */

int throttle_group_join(struct throttle_group *g, struct loop *l)
{
	int rc = 0;

	pthread_mutex_lock(&lock);
	if (g->members && g->loop != l)
		rc = -EXDEV;
	if (!rc) {
		g->loop = l;
		g->members++;
	}
	pthread_mutex_unlock(&lock);
	return rc;
}

void throttle_group_leave(struct throttle_group *g)
{
	pthread_mutex_lock(&lock);
	if (--g->members == 0)
		g->loop = NULL;
	pthread_mutex_unlock(&lock);
}

void throttle_group_moved(struct throttle_group *g, struct loop *l)
{
	pthread_mutex_lock(&lock);
	g->loop = l;
	pthread_mutex_unlock(&lock);
}

struct loop *throttle_group_loop(const char *id)
{
	struct object *ref = NULL;
	struct throttle_group *g = object_get(id, throttle_group_class.name, &ref, NULL);
	struct loop *l;

	if (!g)
		return NULL;
	pthread_mutex_lock(&lock);
	l = g->loop;
	pthread_mutex_unlock(&lock);
	object_put(ref);
	return l;
}

/* -- buckets ------------------------------------------------------------------- */

static void bucket_leak(struct bucket *b, double seconds)
{
	b->level -= b->avg * seconds;
	if (b->level < 0)
		b->level = 0;
	if (b->length > 1) {
		b->burst -= b->max * seconds;
		if (b->burst < 0)
			b->burst = 0;
	}
}

/* Seconds until B has room. */
static double bucket_wait(const struct bucket *b)
{
	double extra;

	if (!b->avg)
		return 0;
	extra = b->level - (b->max ? b->max * b->length : b->avg / 10);
	if (extra > 0)
		return extra / b->avg;
	if (b->max && b->length > 1) {
		extra = b->burst - b->max / 10;
		if (extra > 0)
			return extra / b->max;
	}
	return 0;
}

static void bucket_pour(struct bucket *b, double units)
{
	b->level += units;
	if (b->length > 1)
		b->burst += units;
}

uint64_t throttle_group_wait(struct throttle_group *g, bool write)
{
	uint64_t now = loop_now();
	double seconds = (double)(now - g->last) / 1e9, wait = 0;
	const unsigned mine[] = {
		BUCKET_BPS_TOTAL, BUCKET_IOPS_TOTAL, BUCKET_BPS_READ + write, BUCKET_IOPS_READ + write,
	};

	g->last = now;
	for (unsigned i = 0; i < BUCKETS; i++)
		bucket_leak(&g->buckets[i], seconds);
	for (unsigned i = 0; i < 4; i++) {
		double w = bucket_wait(&g->buckets[mine[i]]);

		wait = w > wait ? w : wait;
	}
	return wait > 1e6 ? (uint64_t)1e15 : (uint64_t)(wait * 1e9 + 0.999);
}

void throttle_group_account(struct throttle_group *g, bool write, uint64_t bytes)
{
	double ops = 1;

	if (g->op_size && (double)bytes > g->op_size)
		ops = (double)bytes / g->op_size;
	bucket_pour(&g->buckets[BUCKET_BPS_TOTAL], (double)bytes);
	bucket_pour(&g->buckets[BUCKET_BPS_READ + write], (double)bytes);
	bucket_pour(&g->buckets[BUCKET_IOPS_TOTAL], ops);
	bucket_pour(&g->buckets[BUCKET_IOPS_READ + write], ops);
}
