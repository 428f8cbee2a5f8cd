// SPDX-License-Identifier: BSD-3-Clause
/* A split virtqueue against honest and hostile drivers (virtio 1.2, section 2.7). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include <errno.h>

#include "tests/unit/vmm-ring.h"

enum { NEXT = VRING_DESC_F_NEXT, WRITE = VRING_DESC_F_WRITE, INDIRECT = VRING_DESC_F_INDIRECT };

static void start(struct ring *r, uint16_t size)
{
	ring_make(r, size);
	r->q.indirect = true;
	assert_int_equal(queue_start(&r->q), 0);
}

static void test_chain(void **state)
{
	struct ring r;

	start(&r, 8);
	assert_int_equal(queue_pop(&r.q, &r.chain), 0);
	ring_desc(&r.desc[3], RING_BUFFERS, 16, NEXT, 7);
	ring_desc(&r.desc[7], RING_BUFFERS + 4096, 512, NEXT | WRITE, 0);
	ring_desc(&r.desc[0], RING_BUFFERS + 8192, 1, WRITE, 99);
	ring_offer(&r, 3);
	assert_false(queue_is_empty(&r.q));
	assert_int_equal(queue_pop(&r.q, &r.chain), 1);
	assert_true(queue_is_empty(&r.q));
	assert_int_equal(r.chain.head, 3);
	assert_int_equal(r.chain.n_out, 1);
	assert_int_equal(r.chain.n_in, 2);
	assert_int_equal(r.chain.out_bytes, 16);
	assert_int_equal(r.chain.in_bytes, 513);
	assert_ptr_equal(r.iov[1].iov_base, r.memory.base + RING_BUFFERS + 4096);
	queue_push(&r.q, 3, 513);
	assert_int_equal(r.used->idx, 1);
	assert_int_equal(r.used->ring[0].id, 3);
	assert_int_equal(r.used->ring[0].len, 513);
	ring_free(&r);
}

/* Buffers that touch are one segment; what is read and what is written never are. */
static void test_neighbours(void **state)
{
	struct ring r;

	start(&r, 8);
	for (unsigned i = 0; i < 6; i++)
		ring_desc(&r.desc[i], RING_BUFFERS + 64 * i, 64,
			  (i < 5 ? NEXT : 0) | (i < 3 ? 0 : WRITE), i + 1);
	ring_offer(&r, 0);
	assert_int_equal(queue_pop(&r.q, &r.chain), 1);
	assert_int_equal(r.chain.n_out, 1);
	assert_int_equal(r.chain.n_in, 1);
	assert_int_equal(r.iov[0].iov_len, 192);
	assert_int_equal(r.iov[1].iov_len, 192);
	ring_free(&r);
}

static void test_indirect(void **state)
{
	struct ring r;

	start(&r, 4);
	/* One of its own, then a table longer than the queue. */
	ring_desc(&r.desc[1], RING_BUFFERS, 16, NEXT, 2);
	ring_desc(&r.desc[2], RING_TABLE, 16 * QUEUE_SEGMENTS_MAX, INDIRECT, 0);
	for (unsigned i = 0; i < QUEUE_SEGMENTS_MAX; i++)
		ring_desc(&r.table[i], RING_BUFFERS + 256 * i, 8, WRITE | (i < 1022 ? NEXT : 0), i + 1);
	ring_offer(&r, 1);
	assert_int_equal(queue_pop(&r.q, &r.chain), 1);
	assert_int_equal(r.chain.n_in, 1023);
	queue_push(&r.q, 1, 0);
	r.table[1022].flags |= NEXT;	/* one segment too many */
	ring_offer(&r, 1);
	assert_int_equal(queue_pop(&r.q, &r.chain), -EINVAL);
	ring_free(&r);
}

/* A chain of the form that a case asks for, offered in a fresh queue of 8. */
struct hostile {
	const char *name;
	void (*make)(struct ring *r);
};

static void head_outside(struct ring *r) { ring_offer(r, 8); }
static void head_huge(struct ring *r) { ring_offer(r, 0xffff); }
static void index_ahead(struct ring *r) { r->avail->idx = 9; }
static void index_behind(struct ring *r) { r->avail->idx = 0xffff; }

static void one(struct ring *r, uint64_t addr, uint32_t len, uint16_t flags, uint16_t next)
{
	ring_desc(&r->desc[0], addr, len, flags, next);
	ring_offer(r, 0);
}

static void loop_self(struct ring *r) { one(r, RING_BUFFERS, 16, NEXT, 0); }
static void next_outside(struct ring *r) { one(r, RING_BUFFERS, 16, NEXT, 8); }
static void loop_long(struct ring *r)
{
	one(r, RING_BUFFERS, 16, NEXT, 1);
	for (unsigned i = 1; i < 8; i++)
		ring_desc(&r->desc[i], RING_BUFFERS + 64 * i, 8, NEXT, i == 7 ? 1 : i + 1);
}
static void empty_buffer(struct ring *r) { one(r, RING_BUFFERS, 0, 0, 0); }
static void beyond(struct ring *r) { one(r, RING_MEMORY, 1, 0, 0); }
static void over_edge(struct ring *r) { one(r, RING_MEMORY - 1, 2, 0, 0); }
static void in_hole(struct ring *r) { one(r, MEMORY_HOLE, 1, 0, 0); }
static void over_high_edge(struct ring *r) { one(r, MEMORY_HIGH + 4095, 2, WRITE, 0); }
static void wraps(struct ring *r) { one(r, UINT64_MAX - 3, 8, 0, 0); }
static void longest(struct ring *r) { one(r, 0, UINT32_MAX, 0, 0); }
static void read_after_write(struct ring *r)
{
	one(r, RING_BUFFERS, 16, NEXT | WRITE, 1);
	ring_desc(&r->desc[1], RING_BUFFERS, 16, 0, 0);
}
static void table_empty(struct ring *r) { one(r, RING_TABLE, 0, INDIRECT, 0); }
static void table_crooked(struct ring *r) { one(r, RING_TABLE, 24, INDIRECT, 0); }
static void table_outside(struct ring *r) { one(r, RING_MEMORY - 16, 32, INDIRECT, 0); }
static void table_long(struct ring *r) { one(r, 0, 16 * (QUEUE_SEGMENTS_MAX + 1), INDIRECT, 0); }
static void table_next(struct ring *r) { one(r, RING_TABLE, 16, INDIRECT | NEXT, 1); }
static void table_nested(struct ring *r)
{
	one(r, RING_TABLE, 16, INDIRECT, 0);
	ring_desc(&r->table[0], RING_TABLE, 16, INDIRECT, 0);
}
static void table_loop(struct ring *r)
{
	one(r, RING_TABLE, 32, INDIRECT, 0);
	ring_desc(&r->table[0], RING_BUFFERS, 8, NEXT, 1);
	ring_desc(&r->table[1], RING_BUFFERS + 64, 8, NEXT, 0);
}
static void table_leaves(struct ring *r)
{
	one(r, RING_TABLE, 16, INDIRECT, 0);
	ring_desc(&r->table[0], RING_BUFFERS, 8, NEXT, 1);
}
static void table_refused(struct ring *r)
{
	r->q.indirect = false;
	one(r, RING_TABLE, 16, INDIRECT, 0);
	ring_desc(&r->table[0], RING_BUFFERS, 8, 0, 0);
}
static void twice(struct ring *r)
{
	one(r, RING_BUFFERS, 8, 0, 0);
	ring_offer(r, 0);
	assert_int_equal(queue_pop(&r->q, &r->chain), 1);
}

#define CASE(f) { #f, f }
static void test_hostile(void **state)
{
	static const struct hostile cases[] = {
		CASE(head_outside), CASE(head_huge), CASE(index_ahead), CASE(index_behind),
		CASE(loop_self), CASE(next_outside), CASE(loop_long), CASE(empty_buffer),
		CASE(beyond), CASE(over_edge), CASE(in_hole), CASE(over_high_edge), CASE(wraps),
		CASE(longest), CASE(read_after_write), CASE(table_empty), CASE(table_crooked),
		CASE(table_outside), CASE(table_long), CASE(table_next), CASE(table_nested),
		CASE(table_loop), CASE(table_leaves), CASE(table_refused), CASE(twice),
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct ring r;

		start(&r, 8);
		cases[i].make(&r);
		if (queue_pop(&r.q, &r.chain) != -EINVAL || !r.q.s.broken)
			fail_msg("%s was taken", cases[i].name);
		/* It stays broken, whatever is offered next, and says nothing more. */
		r.avail->idx = r.q.s.next_avail;
		one(&r, RING_BUFFERS, 8, 0, 0);
		assert_int_equal(queue_pop(&r.q, &r.chain), -EINVAL);
		assert_false(queue_wants_interrupt(&r.q));
		assert_true(queue_is_empty(&r.q));
		assert_int_equal(r.used->idx, 0);
		ring_free(&r);
	}
}

/* What was popped before the queue broke is still completed, and not told. */
static void test_push_after_break(void **state)
{
	struct ring r;

	start(&r, 8);
	twice(&r);
	assert_int_equal(queue_pop(&r.q, &r.chain), -EINVAL);
	assert_int_equal(r.q.n_taken, 1);
	queue_push(&r.q, 0, 8);
	assert_int_equal(r.q.n_taken, 0);
	assert_int_equal(r.used->idx, 0);
	ring_free(&r);
}

static void test_start(void **state)
{
	static const struct queue_state bad[] = {
		{ .size = 0 }, { .size = 3 }, { .size = 2048 }, { .desc = 8 }, { .avail = 1 }, { .used = 2 },
		{ .desc = RING_MEMORY }, { .avail = RING_MEMORY - 2 }, { .used = UINT64_MAX - 3 },
		{ .desc = MEMORY_HOLE }, { .used = RING_MEMORY - 68 },
	};
	struct ring r;

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		ring_make(&r, 8);
		r.q.s.size = i < 3 ? bad[i].size : 8;
		r.q.s.desc += bad[i].desc;
		r.q.s.avail += bad[i].avail;
		r.q.s.used = bad[i].used ? bad[i].used : r.q.s.used;
		assert_int_equal(queue_start(&r.q), -EINVAL);
		assert_int_equal(queue_pop(&r.q, &r.chain), -EINVAL);
		ring_free(&r);
	}
	ring_make(&r, 8);
	r.q.s.used = RING_MEMORY - 72;	/* 4 + 8 * 8 + 2, aligned to 4 */
	assert_int_equal(queue_start(&r.q), 0);
	ring_free(&r);
}

/* Indices run over 65535; N requests of which PER are offered at a time. */
static void test_wrap(void **state)
{
	struct ring r;

	start(&r, 8);
	for (unsigned i = 0; i < 8; i++)
		ring_desc(&r.desc[i], RING_BUFFERS + 64 * i, 8, WRITE, 0);
	for (unsigned n = 0; n < 20000; n++) {
		for (uint16_t i = 0; i < 8; i++)
			ring_offer(&r, (i * 3 + n) % 8);
		for (uint16_t i = 0; i < 8; i++) {
			assert_int_equal(queue_pop(&r.q, &r.chain), 1);
			assert_int_equal(r.chain.head, (i * 3 + n) % 8);
			queue_push(&r.q, r.chain.head, n);
			assert_int_equal(r.used->ring[(uint16_t)(r.used->idx - 1) % 8].id, r.chain.head);
		}
		assert_int_equal(queue_pop(&r.q, &r.chain), 0);
	}
	assert_int_equal(r.used->idx, (uint16_t)160000);
	ring_free(&r);
}

static void serve(struct ring *r)
{
	ring_offer(r, 0);
	assert_int_equal(queue_pop(&r->q, &r->chain), 1);
	queue_push(&r->q, 0, 0);
}

static void test_flags(void **state)
{
	struct ring r;

	start(&r, 8);
	ring_desc(&r.desc[0], RING_BUFFERS, 8, 0, 0);
	serve(&r);
	assert_true(queue_wants_interrupt(&r.q));
	r.avail->flags = VRING_AVAIL_F_NO_INTERRUPT;
	serve(&r);
	assert_false(queue_wants_interrupt(&r.q));
	queue_notifications(&r.q, false);
	assert_int_equal(r.used->flags, VRING_USED_F_NO_NOTIFY);
	queue_notifications(&r.q, true);
	assert_int_equal(r.used->flags, 0);
	ring_free(&r);
}

static void test_event_index(void **state)
{
	struct ring r;
	uint16_t *used_event, *avail_event;

	ring_make(&r, 8);
	r.q.event_idx = true;
	assert_int_equal(queue_start(&r.q), 0);
	used_event = &r.avail->ring[8];
	avail_event = (uint16_t *)&r.used->ring[8];
	ring_desc(&r.desc[0], RING_BUFFERS, 8, 0, 0);
	serve(&r);
	assert_true(queue_wants_interrupt(&r.q));	/* the first: nothing is known */
	*used_event = 3;
	serve(&r);
	assert_false(queue_wants_interrupt(&r.q));
	serve(&r);
	assert_false(queue_wants_interrupt(&r.q));
	serve(&r);
	assert_true(queue_wants_interrupt(&r.q));	/* number 3 (from 0) is done */
	serve(&r);
	assert_false(queue_wants_interrupt(&r.q));
	queue_notifications(&r.q, true);
	assert_int_equal(*avail_event, 5);
	serve(&r);
	queue_notifications(&r.q, false);
	assert_int_equal(*avail_event, 5);
	ring_free(&r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_chain), cmocka_unit_test(test_neighbours),
		cmocka_unit_test(test_indirect), cmocka_unit_test(test_hostile),
		cmocka_unit_test(test_push_after_break), cmocka_unit_test(test_start),
		cmocka_unit_test(test_wrap), cmocka_unit_test(test_flags),
		cmocka_unit_test(test_event_index),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
