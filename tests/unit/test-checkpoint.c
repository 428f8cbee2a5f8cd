/* SPDX-License-Identifier: BSD-3-Clause */
/* backup/checkpoint: names that come from strangers, and the epochs against a model
 * that keeps for each checkpoint what was written since.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "backup/checkpoint.h"
#include "bitmaps/bitmap-int.h"

static uint64_t rng = 88172645463325252ull;

static uint64_t rnd(uint64_t below)
{
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return below ? rng % below : rng;
}

/* -- names --------------------------------------------------------------------- */

static void test_label_there_and_back(void **state)
{
	for (unsigned i = 0; i < 10000; i++) {
		struct label l = { .state = rnd(3), .first = 1 + rnd(0) / 4, .time = rnd(0),
				   .group = rnd(0), .disks = 1 + (unsigned)rnd(256) }, back;
		char buf[LABEL_SIZE];
		size_t len = 1 + rnd(CHECKPOINT_NAME_MAX);

		l.last = l.first + rnd(l.first);
		for (size_t k = 0; k < len; k++)
			l.name[k] = (char)(' ' + rnd(0x7f - ' '));
		label_format(&l, buf);
		assert_true(label_parse(buf, &back));
		assert_int_equal(back.state, l.state);
		assert_int_equal(back.first, l.first);
		assert_int_equal(back.last, l.last);
		assert_int_equal(back.time, l.time);
		assert_int_equal(back.group, l.group);
		assert_int_equal(back.disks, l.disks);
		assert_string_equal(back.name, l.name);
	}
}

static void test_label_of_strangers(void **state)
{
	static const char *const good = "merino:active:1-2:3:0123456789abcdef-4:x";
	static const char *const bad[] = {
		"", "b", "merino", "merino:", "merino:active", "merino:active:",
		"Merino:active:1-2:3:0123456789abcdef-4:x", "merino:actives:1-2:3:0123456789abcdef-4:x",
		"merino:done:1-2:3:0123456789abcdef-4:x", "merino:active:0-2:3:0123456789abcdef-4:x",
		"merino:active:2-1:3:0123456789abcdef-4:x", "merino:active:01-2:3:0123456789abcdef-4:x",
		"merino:active:1-18446744073709551615:3:0123456789abcdef-4:x",
		"merino:active:1-18446744073709551616:3:0123456789abcdef-4:x",
		"merino:active:-1-2:3:0123456789abcdef-4:x", "merino:active:+1-2:3:0123456789abcdef-4:x",
		"merino:active:1-2: 3:0123456789abcdef-4:x", "merino:active:1-2::0123456789abcdef-4:x",
		"merino:active:1-2:3:0123456789ABCDEF-4:x", "merino:active:1-2:3:0123456789abcde-4:x",
		"merino:active:1-2:3:0123456789abcdef0-4:x", "merino:active:1-2:3:0123456789abcdef:x",
		"merino:active:1-2:3:0123456789abcdef-0:x", "merino:active:1-2:3:0123456789abcdef-257:x",
		"merino:active:1-2:3:0123456789abcdef-4:", "merino:active:1-2:3:0123456789abcdef-4",
		"merino:active:1-2:3:0123456789abcdef-4:a\nb", "merino:active:1-2:3:0123456789abcdef-4:\xff",
		"merino:active:1-2:3:0123456789abcdef-4:\x7f", "merino:active:1-2:3:0123",
	};
	char longer[LABEL_SIZE + 100];
	struct label l;

	assert_true(label_parse(good, &l));
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		if (label_parse(bad[i], &l))
			fail_msg("\"%s\" was taken for a checkpoint", bad[i]);
	}
	snprintf(longer, sizeof(longer), "%s", good);
	memset(longer + strlen(good) - 1, 'n', CHECKPOINT_NAME_MAX + 1);
	longer[strlen(good) + CHECKPOINT_NAME_MAX] = 0;
	assert_false(label_parse(longer, &l));
	longer[strlen(good) + CHECKPOINT_NAME_MAX - 1] = 0;
	assert_true(label_parse(longer, &l));
}

/* -- epochs -------------------------------------------------------------------------- */

#define GRANULES 64
#define G 4096
#define MANY 40

static const struct node_driver fake = { .name = "fake" };

/* What is known of one checkpoint. */
struct known {
	char name[16];
	uint64_t since;			/* granules written since */
	bool trusted;
};

struct world {
	struct node node;
	struct known v[MANY];		/* those that count, the oldest first */
	unsigned n, serial;
	struct checkpoint_disk disk;	/* pending, when .epoch is set */
	struct known pending;
};

static void write_some(struct world *w)
{
	uint64_t first = rnd(GRANULES), n = 1 + rnd(4), bits = 0;

	for (uint64_t i = first; i < first + n && i < GRANULES; i++)
		bits |= 1ull << i;
	for (struct bitmap *b = w->node.bitmaps; b; b = b->next) {
		if (b->enabled)
			bitmap_set(b, first * G, n * G);
	}
	for (unsigned i = 0; i < w->n; i++)
		w->v[i].since |= bits;
	w->pending.since |= bits;
}

/* checkpoint_disk_prepare() without the view, which has tests of its own. */
static void begin(struct world *w)
{
	struct epochs e;
	char name[LABEL_SIZE];
	struct label *l = &w->disk.label;
	struct error err = ERROR_INIT;

	if (w->disk.epoch || w->n == MANY)
		return;
	assert_int_equal(epochs_list(&w->node, &e, &err), 0);
	w->disk = (struct checkpoint_disk){ .node = &w->node };
	*l = (struct label){ .state = CHECKPOINT_PENDING, .disks = 1, .time = w->serial };
	l->first = l->last = epochs_next_number(&e);
	epochs_free(&e);
	snprintf(l->name, sizeof(l->name), "c%u", w->serial++);
	label_format(l, name);
	assert_int_equal(bitmap_add(&w->node, name, G, false, false, &w->disk.epoch, &err), 0);
	w->disk.epoch->busy++;
	w->disk.held = true;
	w->pending = (struct known){ .trusted = true };
	strcpy(w->pending.name, l->name);
}

static void end_leftovers(struct world *w, bool useless_too)
{
	struct error err = ERROR_INIT;
	unsigned count;

	assert_int_equal(checkpoint_end_leftovers(&w->node, useless_too, &count, &err), 0);
	checkpoint_drop_ended(&w->node);
}

static void release(struct world *w)
{
	w->disk.epoch->busy--;
	w->disk.epoch = NULL;
}

static void succeed(struct world *w)
{
	struct error err = ERROR_INIT;
	unsigned kept = 0;

	if (!w->disk.epoch)
		return;
	assert_int_equal(checkpoint_disk_mark(&w->disk, CHECKPOINT_READY, &err), 0);
	assert_int_equal(checkpoint_disk_mark(&w->disk, CHECKPOINT_ACTIVE, &err), 0);
	release(w);
	checkpoint_freeze(&w->node);
	end_leftovers(w, true);
	for (unsigned i = 0; i < w->n; i++) {
		if (w->v[i].trusted)
			w->v[kept++] = w->v[i];
	}
	w->v[kept] = w->pending;
	w->n = kept + 1;
}

static void fail_it(struct world *w)
{
	if (!w->disk.epoch)
		return;
	release(w);
	end_leftovers(w, false);
}

static void forget(struct world *w, unsigned i)
{
	memmove(&w->v[i], &w->v[i + 1], (w->n - i - 1) * sizeof(w->v[0]));
	w->n--;
}

static struct bitmap *bitmap_of(struct world *w, unsigned i)
{
	struct epochs e;
	struct bitmap *b;

	assert_int_equal(epochs_list(&w->node, &e, NULL), 0);
	b = e.v[epochs_find(&e, w->v[i].name)].bitmap;
	epochs_free(&e);
	return b;
}

static void delete_one(struct world *w)
{
	unsigned i = w->n ? (unsigned)rnd(w->n) : 0;
	struct error err = ERROR_INIT;
	bool inconsistent, allowed;

	if (!w->n)
		return;
	inconsistent = bitmap_of(w, i)->inconsistent;
	allowed = (!inconsistent || !i) && !(w->disk.epoch && i == w->n - 1);
	assert_int_equal(!checkpoint_fold(&w->node, w->v[i].name, &err), allowed);
	end_leftovers(w, false);
	if (allowed)
		forget(w, i);
}

/* What others do to our bitmaps. */
static void distrust(struct world *w, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		w->v[i].trusted = false;
}

static void tamper(struct world *w)
{
	unsigned i = w->n ? (unsigned)rnd(w->n) : 0;

	if (!w->n)
		return;
	switch (rnd(3)) {
	case 0:
		bitmap_remove(bitmap_of(w, i), NULL);
		/* Older ones of which nothing newer is left cannot know: the next one begins
		 * behind a gap, because what is the newest now does not record. */
		distrust(w, i);
		forget(w, i);
		break;
	case 1:
		bitmap_set_inconsistent(bitmap_of(w, i));
		distrust(w, i + 1);
		break;
	case 2:
		/* While one is pending, that one records: nothing is missed if it succeeds. */
		if (w->disk.epoch)
			return;
		bitmap_of(w, w->n - 1)->enabled = false;
		distrust(w, w->n);
		break;
	}
}

static void check(struct world *w)
{
	struct node nowhere = { .driver = &fake, .size = GRANULES * G };
	struct error err = ERROR_INIT;
	struct epochs e;

	assert_int_equal(epochs_list(&w->node, &e, &err), 0);
	assert_int_equal(e.n, w->n + (w->disk.epoch != NULL));
	for (unsigned i = 0; i < w->n; i++) {
		int k = epochs_find(&e, w->v[i].name);
		struct bitmap *all;

		assert_true(k >= 0);
		assert_int_equal(epochs_cover(&e, k, NULL), w->v[i].trusted);
		if (!w->v[i].trusted)
			continue;
		assert_int_equal(bitmap_add(&nowhere, "all", G, false, true, &all, &err), 0);
		assert_int_equal(epochs_union(&e, k, all, &err), 0);
		for (unsigned g = 0; g < GRANULES; g++)
			assert_int_equal(bitmap_get(all, (uint64_t)g * G), w->v[i].since >> g & 1);
		bitmap_remove(all, NULL);
	}
	epochs_free(&e);
}

static void run(unsigned steps, bool tampering)
{
	struct world w = { .node = { .name = "n", .driver = &fake, .size = GRANULES * G } };

	for (unsigned i = 0; i < steps; i++) {
		switch (rnd(tampering ? 20 : 16)) {
		case 0 ... 5: write_some(&w); break;
		case 6 ... 8: begin(&w); break;
		case 9 ... 10: succeed(&w); break;
		case 11: fail_it(&w); break;
		case 12 ... 15: delete_one(&w); break;
		case 16: tamper(&w); break;
		default: break;
		}
		check(&w);
	}
	fail_it(&w);
	while (w.node.bitmaps)
		bitmap_free(w.node.bitmaps);
}

static void test_epochs(void **state)
{
	for (unsigned i = 0; i < 200; i++)
		run(300, false);
}

static void test_epochs_that_others_touch(void **state)
{
	for (unsigned i = 0; i < 200; i++)
		run(300, true);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_label_there_and_back),
		cmocka_unit_test(test_label_of_strangers),
		cmocka_unit_test(test_epochs),
		cmocka_unit_test(test_epochs_that_others_touch),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
