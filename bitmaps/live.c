// SPDX-License-Identifier: BSD-3-Clause
/* live: the mapped file of an open image's bitmaps (live.h says why it is right).
 *
 * Areas.  A bitmap's bits are a mapping of its own area.  Who needs a larger or an empty one
 * gets another; the old one is used again when a durable table does without it.
 *
 * Making the file: areas and tables, durable; then it takes the old one's place; then the
 * regions' file does.  A crash in between finds the old bits with the old marks, or the new
 * ones with the old marks, which are too many.
 *
 * When storage fails all bits go to memory, the file goes, and a line in the log says so.
 */
#include "bitmaps/live-int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <time.h>

#include "bitmaps/bits.h"
#include "bitmaps/changes.h"
#include "common/bus-guard.h"
#include "common/log.h"

#define SWEEP_NS 5000000000ull

uint32_t live_table_bytes = 64u << 10;
unsigned live_test_break_order;

static const char *name_of(const struct node *n)
{
	return n->filename ? n->filename : n->name;
}

static uint64_t areas_start(const struct live *l)
{
	return LIVE_HEAD + 4ull * l->table_bytes;
}

static uint64_t mapped_len(const struct live *l)
{
	return LIVE_HEAD + 2ull * l->table_bytes;
}

static uint8_t *mapped_table(const struct live *l, uint64_t seq)
{
	return l->mem + LIVE_HEAD + (seq & 1) * l->table_bytes;
}

bool live_is_on(const struct node *n)
{
	return n->live && !n->live->failed;
}

bool live_has(const struct bitmap *b)
{
	return b->live && live_is_on(b->node);
}

const uint8_t *live_session(const struct node *n)
{
	return n->live->session;
}

/* -- areas --------------------------------------------------------------------------- */

/* Takes a free one of LEN bytes off the list: its offset, or 0. */
static uint64_t take_free(struct live *l, uint64_t len)
{
	for (struct live_free **p = &l->free; *p; p = &(*p)->next) {
		struct live_free *f = *p;
		uint64_t off = f->off;

		if (f->len < len || (f->seq > l->durable && live_test_break_order != 3))
			continue;
		f->off += len;
		f->len -= len;
		if (!f->len) {
			*p = f->next;
			free(f);
		}
		return off;
	}
	return 0;
}

/* Out of memory it is lost until the next start. */
static void put_free(struct live *l, uint64_t off, uint64_t len)
{
	struct live_free *f = malloc(sizeof(*f));

	if (!f)
		return;
	*f = (struct live_free){ .next = l->free, .off = off, .len = len, .seq = l->seq + 1 };
	l->free = f;
}

/* An empty area of LEN bytes, mapped.  May suspend. */
static int make_area(struct live *l, uint64_t len, uint64_t *off, uint64_t **bits)
{
	struct io_beside file = { .f = io_file_ref(l->file.f) };	/* live_fail() may come */
	int rc;

	*off = take_free(l, len);
	if (*off) {
		rc = io_zero(file.f, *off, len, 0);
	} else {
		*off = l->end;
		l->end += len;
		rc = io_beside_grow(&file, *off, len);
	}
	*bits = rc ? NULL : io_beside_map(&file, *off, len);
	if (!rc && (!*bits || l->failed)) {
		rc = *bits ? -EIO : -ENOMEM;
		if (*bits)
			io_beside_unmap(l->node->io, *bits, len);
	}
	io_file_unref(file.f);
	return rc;
}

/* The same, at once where one was reserved. */
static int new_area(struct live *l, uint64_t len, uint64_t *off, uint64_t **bits)
{
	for (struct live_spare **p = &l->spares; *p; p = &(*p)->next) {
		struct live_spare *s = *p;

		if (s->len != len)
			continue;
		*p = s->next;
		*off = s->off;
		*bits = s->bits;
		free(s);
		return 0;
	}
	return make_area(l, len, off, bits);
}

/* Where it fails, who needs one tries again and says so. */
void live_reserve(struct node *n, uint64_t len)
{
	struct live *l = n->live;
	struct live_spare *s = live_is_on(n) && l->mem ? calloc(1, sizeof(*s)) : NULL;

	if (!s)
		return;
	s->len = len;
	if (make_area(l, len, &s->off, &s->bits)) {
		free(s);
		return;
	}
	s->next = l->spares;
	l->spares = s;
}

static void drop_spares(struct live *l)
{
	while (l->spares) {
		struct live_spare *s = l->spares;

		l->spares = s->next;
		io_beside_unmap(l->node->io, s->bits, s->len);
		if (!l->failed)
			put_free(l, s->off, s->len);
		free(s);
	}
}

void live_unreserve(struct node *n)
{
	if (n->live)
		drop_spares(n->live);
}

static void copy_bits(uint64_t *to, const struct bitmap *b)
{
	bits_or(to, b->bits, DIV_ROUND_UP(bitmap_granules(b), 64));	/* touches only what is not zero */
}

static void unmap_bits(struct bitmap *b)
{
	if (b->live)
		io_beside_unmap(b->node->io, b->bits, b->bits_len);
	else
		munmap(b->bits, b->bits_len);
}

static void use_area(struct bitmap *b, uint64_t off, uint64_t *bits, uint64_t len)
{
	if (b->live)
		put_free(b->node->live, b->live_off, b->bits_len);
	unmap_bits(b);
	b->bits = bits;
	b->bits_len = len;
	b->live_off = off;
	b->live = true;
}

/* Pages that were lost are full of ones, as is what is read of them meanwhile. */
static void count_again(struct bitmap *b, uint64_t *bits)
{
	uint64_t granules = bitmap_granules(b);

	if (!bus_guard_has_lost(b->bits))
		return;
	if (granules % 64)
		bits[granules / 64] &= ~(~0ull << (granules % 64));
	b->dirty = bits_count(bits, DIV_ROUND_UP(granules, 64));
	b->changed = true;
	changes_drop(b);
}

/* The bits go to memory; where there is none the bitmap does not know any more. */
static void leave_file(struct bitmap *b)
{
	uint64_t len = b->bits_len;
	void *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
		       -1, 0);

	if (p != MAP_FAILED) {
		copy_bits(p, b);
		count_again(b, p);
	}
	if (!b->node->live->failed)
		put_free(b->node->live, b->live_off, b->bits_len);
	if (p == MAP_FAILED) {
		bitmap_free_bits(b);
		b->live = false;
		bitmap_set_inconsistent(b);
		return;
	}
	unmap_bits(b);
	b->live = false;
	b->bits = p;
}

void live_let_go(struct bitmap *b)
{
	if (b->live && live_is_on(b->node))
		leave_file(b);
	live_changed(b->node);
}

/* -- the time of the last write ---------------------------------------------------------- */

/* The clock that file systems take their times from. */
int64_t live_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_REALTIME_COARSE, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void stamp(struct live *l)
{
	__atomic_store_n((int64_t *)(void *)(l->mem + LIVE_STAMP), live_now(), __ATOMIC_RELAXED);
	l->stamped = true;
}

void live_stamp(struct node *n)
{
	struct live *l = n->live;

	if (!l || !l->mem || l->failed || l->kind == LIVE_QCOW2)
		return;			/* no memory: it is being made */
	stamp(l);
	if (!l->timer.armed)
		live_arm(l);		/* to have it synced */
}

/* -- changes --------------------------------------------------------------------------- */

static void write_mapped(struct live *l)
{
	live_table_write(l, mapped_table(l, l->seq + 1), l->seq + 1);
	l->seq++;
	l->changed = false;
	live_arm(l);
}

void live_changed(struct node *n)
{
	struct live *l = n->live;

	if (!live_is_on(n) || !l->mem)
		return;
	if (l->held)
		l->changed = true;
	else
		write_mapped(l);
}

void live_hold(struct node *n)
{
	if (n->live)
		n->live->held++;
}

void live_release(struct node *n)
{
	struct live *l = n->live;

	if (!l || !l->held || --l->held)
		return;
	if (l->changed && l->mem && !l->failed)
		write_mapped(l);
}

static bool fits(const struct live *l)
{
	bool all;

	live_table_len(l->node, &all, l->table_bytes);
	return all;
}

bool live_fits(const struct node *n, size_t name_len)
{
	uint64_t len = sizeof(struct live_entry_head) + align_up(name_len, 8);
	bool all;

	return live_table_len(n, &all, n->live->table_bytes) + len <= n->live->table_bytes && all;
}

int live_new_session(uint8_t *id)
{
	ssize_t n;

	do
		n = getrandom(id, LIVE_SESSION, 0);
	while (n < 0 && errno == EINTR);
	return n == (ssize_t)LIVE_SESSION ? 0 : -EIO;
}

int live_add(struct bitmap *b)
{
	struct live *l = b->node->live;
	uint64_t len = b->bits_len, off, *bits;
	int rc;

	if (!live_is_on(b->node))
		return -ENOENT;
	rc = fits(l) ? new_area(l, len, &off, &bits) : -ENOSPC;
	if (!rc) {
		copy_bits(bits, b);
		use_area(b, off, bits, len);
	} else {
		log_warning("bitmap does not survive a crash, there is no room for it: image=%s "
			    "bitmap=%s error=%s", name_of(b->node), b->name, strerror(-rc));
	}
	live_changed(b->node);
	return rc;
}

void live_drop(struct bitmap *b)
{
	struct live *l = b->node->live;

	if (b->live && live_is_on(b->node))
		put_free(l, b->live_off, b->bits_len);
	bitmap_free_bits(b);
	b->live = false;
}

void live_clear(struct bitmap *b)
{
	struct live *l = b->node->live;
	uint64_t off, *bits;
	int rc;

	if (!b->dirty)
		return;
	if (!live_is_on(b->node) || live_test_break_order == 3) {
		bits_clear(b->bits, 0, bitmap_granules(b) - 1);
		b->dirty = 0;
		return;
	}
	rc = new_area(l, b->bits_len, &off, &bits);
	if (rc) {
		log_warning("bitmap does not survive a crash any more, there is no room for it: "
			    "image=%s bitmap=%s error=%s", name_of(b->node), b->name, strerror(-rc));
		if (b->live)
			leave_file(b);
		if (b->bits)
			bits_clear(b->bits, 0, bitmap_granules(b) - 1);
	} else {
		use_area(b, off, bits, b->bits_len);
	}
	b->dirty = 0;
	live_changed(b->node);
}

int live_resize(struct bitmap *b, uint64_t size)
{
	uint64_t len = max_u64(align_up(bitmap_data_bytes(size, b->granularity_bits), LIVE_PAGE), LIVE_PAGE);
	struct live *l = b->node->live;
	uint64_t off, *bits;
	int rc;

	if (len <= b->bits_len)
		return 0;
	if (!live_is_on(b->node))
		return -EIO;
	rc = new_area(l, len, &off, &bits);
	if (!rc && b->bits_len >= len) {	/* another write was faster */
		io_beside_unmap(b->node->io, bits, len);
		put_free(l, off, len);
		return 0;
	}
	if (rc)
		return rc;
	copy_bits(bits, b);
	use_area(b, off, bits, len);
	return 0;
}

/* -- sync ---------------------------------------------------------------------------- */

void live_fail(struct live *l, int rc)
{
	struct node *n = l->node;

	if (l->failed)
		return;
	l->failed = true;
	log_error("the bitmaps' file failed, they do not survive a crash any more: image=%s error=%s",
		  name_of(n), strerror(-rc));
	((struct live_head *)(void *)l->mem)->magic[0] = 0;
	for (struct bitmap *b = n->bitmaps; b; b = b->next)
		if (b->live)
			leave_file(b);
	drop_spares(l);
	/* Whichever of these works. */
	regions_mark_all(l->regions);
	io_beside_end(&l->file, true);
}

bool live_lost(struct live *l)
{
	bool any = l->mem && bus_guard_has_lost(l->mem);

	l->lost = bus_guard_lost();
	for (struct bitmap *b = l->node->bitmaps; b && !any; b = b->next)
		any = b->live && bus_guard_has_lost(b->bits);
	return any;
}

/* With `syncing` held. */
static int sync_now(struct live *l)
{
	struct io_file *f = io_file_ref(l->file.f);
	uint64_t seq = l->seq;
	struct live_table_head h;
	uint8_t *copy = NULL;
	size_t len = 0;
	int rc = 0;

	l->stamped = false;
	if (live_lost(l))
		goto lost;
	if (l->durable < seq) {
		memcpy(&h, mapped_table(l, seq), sizeof(h));
		if (h.bytes > l->table_bytes)
			goto lost;		/* just now */
		len = align_up(h.bytes, 512);
		copy = aligned_alloc(LIVE_PAGE, align_up(len, LIVE_PAGE));
		if (!copy) {
			io_file_unref(f);
			return -ENOMEM;
		}
		memset(copy, 0, len);
		memcpy(copy, mapped_table(l, seq), h.bytes);
	}
	if (live_test_break_order != 4)
		rc = io_fsync(f);
	if (!rc && copy)
		rc = io_pwrite(f, copy, len, LIVE_HEAD + (2ull + l->slot) * l->table_bytes, IO_DSYNC);
	if (!rc && live_test_break_order == 4)
		rc = io_fsync(f);
	if (!rc && copy)
		l->slot ^= 1;		/* the last one stays until this one is there */
	if (!rc)
		l->durable = seq;
	io_file_unref(f);
	free(copy);
	return rc;

lost:
	io_file_unref(f);
	return -EIO;
}

int live_sync(struct node *n)
{
	struct live *l = n->live;
	int rc;

	if (!live_is_on(n))
		return 0;
	co_mutex_lock(&l->syncing);
	rc = l->failed ? -EIO : sync_now(l);
	if (rc && rc != -ENOMEM)
		live_fail(l, rc);
	co_mutex_unlock(&l->syncing);
	return rc;
}

void live_sweep(struct node *n)
{
	struct live *l = n->live;
	bool drop;
	int rc = 0;

	if (!live_is_on(n) || l->sweeping)
		return;
	l->sweeping = true;
	drop = regions_begin_drop(l->regions);
	if (drop && live_test_break_order == 1)
		rc = regions_finish_drop(l->regions);
	if (!rc && (drop || l->stamped || l->durable < l->seq))
		rc = live_sync(n);
	if (!rc && drop && !l->failed && live_test_break_order != 1)
		rc = regions_finish_drop(l->regions);
	if (rc && rc != -ENOMEM)
		live_fail(l, rc);
	l->sweeping = false;
	while (l->swept.head)
		co_queue_wake_one(&l->swept);
	live_arm(l);
}

static void sweep_in_coroutine(void *arg)
{
	struct live *l = arg;

	live_sweep(l->node);
}

static void time_to_sweep(struct loop_timer *t)
{
	co_start(sweep_in_coroutine, (struct live *)((char *)t - offsetof(struct live, timer)));
}

/* In tools and tests there is no loop, and nobody sweeps by himself. */
void live_arm(struct live *l)
{
	if (!l->node->loop || l->node->loop != loop_self() || l->timer.armed || l->sweeping || l->failed ||
	    l->leaving || !l->regions)
		return;
	if (l->durable < l->seq || l->stamped || regions_any(l->regions))
		loop_timer_set(&l->timer, loop_now() + SWEEP_NS, time_to_sweep);
}

/* Nobody waits for the file any more.  Guests may go on. */
static void quiet(struct live *l)
{
	l->leaving = true;
	if (l->timer.armed)
		loop_timer_cancel(&l->timer);
	while (l->sweeping || l->marking || l->syncing.held) {
		if (l->sweeping || l->marking) {
			co_queue_wait(&l->swept);
		} else {
			co_mutex_lock(&l->syncing);
			co_mutex_unlock(&l->syncing);
		}
	}
}

void live_leave(struct node *n)
{
	if (n->live)
		quiet(n->live);
}

void live_moved(struct node *n)
{
	struct live *l = n->live;

	if (!l)
		return;
	l->leaving = false;
	if (l->file.f)
		l->file.f->io = n->io;
	if (l->regions && l->regions->file.f)
		l->regions->file.f->io = n->io;
	live_arm(l);
}

/* -- beginning and end --------------------------------------------------------------- */

static bool belongs(const struct bitmap *b)
{
	return b->persistent && !b->inconsistent && b->bits;
}

static int fill(struct live *l)
{
	uint64_t at = areas_start(l);

	for (struct bitmap *b = l->node->bitmaps; b; b = b->next) {
		uint64_t *bits;

		if (!belongs(b))
			continue;
		bits = io_beside_map(&l->file, at, b->bits_len);
		if (!bits)
			return -ENOMEM;
		copy_bits(bits, b);
		use_area(b, at, bits, b->bits_len);
		at += b->bits_len;
	}
	return 0;
}

static int write_head(struct live *l)
{
	struct live_head h = { .version = LIVE_VERSION, .order = LIVE_ORDER, .head_bytes = LIVE_HEAD,
			       .table_bytes = l->table_bytes, .kind = l->kind };
	struct io_identity id;
	int rc = io_identity(l->image, &id);

	if (rc)
		return rc;
	memcpy(h.magic, LIVE_MAGIC, sizeof(h.magic));
	memcpy(h.boot, id.boot, sizeof(h.boot));
	memcpy(h.session, l->session, sizeof(h.session));
	h.dev = id.dev;
	h.ino = id.ino;
	h.crc = live_crc(&h, offsetof(struct live_head, crc));
	memcpy(l->mem, &h, sizeof(h));
	stamp(l);
	return 0;
}

static int make(struct live *l, const char *dir, bool in_use)
{
	int rc;

	l->end = areas_start(l);
	for (struct bitmap *b = l->node->bitmaps; b; b = b->next)
		if (belongs(b))
			l->end += b->bits_len;
	rc = io_beside_make(l->image, dir, LIVE_SUFFIX, 0, l->end, &l->file);
	if (rc)
		return rc;
	l->mem = io_beside_map(&l->file, 0, mapped_len(l));
	rc = l->mem ? fill(l) : -ENOMEM;
	if (!rc)
		rc = write_head(l);
	if (rc)
		return rc;
	write_mapped(l);
	rc = sync_now(l);
	if (!rc)
		rc = io_beside_keep(&l->file);
	if (!rc)
		rc = regions_start(l, in_use, &l->regions);
	/* Writes that came meanwhile found nothing to mark. */
	return rc ? rc : io_fsync(l->file.f);
}

/* First of all it is nobody's: guests may go on. */
static void free_live(struct live *l, bool remove)
{
	struct node *n = l->node;

	n->live = NULL;
	drop_spares(l);
	if (l->regions)
		regions_end(l->regions, remove);
	io_beside_end(&l->file, remove);
	if (l->mem)
		io_beside_unmap(n->io, l->mem, mapped_len(l));
	while (l->free) {
		struct live_free *f = l->free;

		l->free = f->next;
		free(f);
	}
	io_file_unref(l->image);
	free(l->dir);
	free(l);
}

void live_give_up(struct node *n)
{
	if (!n->live)
		return;
	quiet(n->live);
	for (struct bitmap *b = n->bitmaps; b; b = b->next)
		if (b->live)
			leave_file(b);
	free_live(n->live, true);
}

int live_start(struct node *n, struct io_file *image, const char *dir, enum live_kind kind,
	       const uint8_t *session, bool in_use, struct error *err)
{
	struct live *l = calloc(1, sizeof(*l));
	int rc;

	if (!l || (dir && !(l->dir = strdup(dir)))) {
		free(l);
		return error_set(err, -ENOMEM, "Out of memory");
	}
	l->node = n;
	l->image = io_file_ref(image);
	l->kind = kind;
	l->table_bytes = live_table_bytes;
	memcpy(l->session, session, LIVE_SESSION);
	n->live = l;
	rc = make(l, dir, in_use);
	if (!rc) {
		live_arm(l);
		return 0;
	}
	live_give_up(n);
	return error_errno(err, rc, "Could not make the file of the bitmaps");
}

void live_end(struct node *n, bool remove)
{
	struct live *l = n->live;

	if (!l)
		return;
	quiet(l);
	free_live(l, remove);
}

int live_close_clean(struct node *n, const struct live_image *image)
{
	struct live *l = n->live;

	if (!live_is_on(n))
		return -EIO;
	quiet(l);
	l->closing.flags = LIVE_CLOSED;
	l->closing.image = *image;
	write_mapped(l);
	return live_sync(n);
}
