// SPDX-License-Identifier: BSD-3-Clause
/* view-log: where a view keeps old data: in memory first, then in the fleece log.
 *
 * The log is an endless row of blocks, cut into segments.  A save takes the next blocks
 * of the last segment and reads into its memory; a full segment is written in large pieces,
 * behind everybody's back, once half of the memory is used, and its memory is free.  A
 * block has the same number in memory and in the file: nothing has to be looked up again.
 *
 * The file has no name, is never synced, and grows at its end only.  What the reader is
 * done with is punched out of it; a segment that nobody wants any more is forgotten, and
 * never written if it is still in memory.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backup/view-int.h"

/* Bytes of one write to the file.  Larger ones keep a core from the loop, and the guest
 * waits. */
#define LOG_WRITE (128u << 10)
#define DEAD_WORDS (VIEW_PIECE / VIEW_GRANULARITY_MIN / 64)

/* Storage that stops for a moment (a journal that commits) is no reason to give the view
 * up: so much more may wait for it then. */
#define SLOW_FACTOR 4u

uint64_t view_memory = VIEW_MEMORY_DEFAULT;

struct segment {
	uint64_t number;
	uint8_t *mem;			/* NULL: in the file only */
	uint32_t filled;		/* blocks handed out */
	uint32_t pending;		/* of them: being read */
	uint32_t live;			/* of them: wanted */
	bool sealed;			/* no more is handed out */
	bool writing;			/* to the file */
	bool punching;			/* is on the list … */
	struct segment *next_punch;
	uint64_t dead[DEAD_WORDS];	/* not wanted any more */
	uint64_t punched[DEAD_WORDS];	/* … and given back */
};

static inline uint64_t segment_bytes(const struct view *v)
{
	return (uint64_t)v->log.per_segment << v->bits;
}

static inline uint64_t file_offset(const struct view *v, const struct segment *s, uint32_t i)
{
	return s->number * segment_bytes(v) + ((uint64_t)i << v->bits);
}

int view_log_open(struct view *v, const char *dir, uint64_t max, struct error *err)
{
	struct view_log *l = &v->log;

	l->per_segment = VIEW_PIECE >> v->bits;
	l->max = max;
	l->file = io_open(v->node->io, dir, IO_RDWR | IO_CREATE | IO_UNNAMED, err);
	if (!l->file)
		return err->code;
	l->file->no_inline_write = true;
	return 0;
}

static void free_memory(struct view *v, struct segment *s)
{
	struct view_log *l = &v->log;

	if (!s->mem)
		return;
	if (l->n_spare == sizeof(l->spare) / sizeof(l->spare[0]) || v->broken)
		free(s->mem);
	else
		l->spare[l->n_spare++] = s->mem;
	s->mem = NULL;
	l->memory -= segment_bytes(v);
	co_queue_wake_all(&l->space);
}

/* Nobody wants anything of S, and nobody works on it. */
static void forget(struct view *v, struct segment *s)
{
	free_memory(v, s);
	v->log.v[s->number] = NULL;
	free(s);
}

static void forget_if_unused(struct view *v, struct segment *s)
{
	if (s->live || s->pending || s->writing || s->punching)
		return;
	if (s->sealed) {
		forget(v, s);
		return;
	}
	s->filled = 0;			/* the last one begins again */
	memset(s->dead, 0, sizeof(s->dead));
}

void view_log_empty(struct view *v)
{
	if (v->log.file && v->log.n)
		io_truncate(v->log.file, 0);
}

void view_log_close(struct view *v)
{
	struct view_log *l = &v->log;

	for (uint64_t i = 0; i < l->n; i++) {
		if (l->v[i]) {
			free(l->v[i]->mem);
			free(l->v[i]);
		}
	}
	free(l->v);
	while (l->n_spare)
		free(l->spare[--l->n_spare]);
	io_file_unref(l->file);
	*l = (struct view_log){ 0 };
}

/* -- writing to the file ---------------------------------------------------------------- */

/* The next run [*I, return value) of bits in V that are clear, before END. */
static uint32_t clear_run(const uint64_t *v, uint32_t *i, uint32_t end)
{
	uint32_t last;

	while (*i < end && v[*i / 64] >> (*i % 64) & 1)
		++*i;
	last = *i;
	while (last < end && !(v[last / 64] >> (last % 64) & 1))
		last++;
	return last;
}

/* Once the guest is about to wait for memory, short writes do not spare it anything. */
static uint64_t longest_write(const struct view *v)
{
	if (v->log.memory > view_memory / 4 * 3)
		return segment_bytes(v);
	return max_u64(LOG_WRITE, 1ull << v->bits);
}

static int write_segment(struct view *v, struct segment *s)
{
	uint64_t not_wanted[DEAD_WORDS];
	uint32_t i = 0, end;
	int rc = 0;

	memcpy(not_wanted, s->dead, sizeof(not_wanted));
	while (!rc && (end = clear_run(not_wanted, &i, s->filled)) > i) {
		uint64_t bytes = min_u64((uint64_t)(end - i) << v->bits, longest_write(v));

		rc = io_pwrite(v->log.file, s->mem + ((size_t)i << v->bits), bytes,
			       file_offset(v, s, i), 0);
		if (!rc)
			v->log.stored += bytes;
		i += (uint32_t)(bytes >> v->bits);
	}
	/* What was not written need not be given back. */
	for (unsigned w = 0; w < DEAD_WORDS; w++)
		s->punched[w] = not_wanted[w];
	return rc;
}

/* The oldest segment that waits to be written; NULL: none, or it has to wait. */
static struct segment *next_to_write(struct view *v)
{
	struct view_log *l = &v->log;

	while (l->oldest < l->n && (!l->v[l->oldest] || !l->v[l->oldest]->mem))
		l->oldest++;
	for (uint64_t i = l->oldest; i < l->n; i++) {
		struct segment *s = l->v[i];

		if (s && s->mem && s->sealed && !s->pending && !s->writing)
			return s;
	}
	return NULL;
}

static bool is_full(const struct view *v, const struct segment *s)
{
	uint64_t bytes = (uint64_t)s->live << v->bits;

	return v->log.max && v->log.stored + v->aside.held + bytes > v->log.max;
}

static void punch_later(struct view *v, struct segment *s);

static void flush_one(struct view *v, struct segment *s)
{
	int rc;

	s->writing = true;
	rc = write_segment(v, s);
	s->writing = false;
	if (rc)
		view_break(v, "the fleece log cannot be written: %s", strerror(-rc));
	free_memory(v, s);
	if (memcmp(s->dead, s->punched, sizeof(s->dead)))
		punch_later(v, s);	/* and forgets it, perhaps */
	else
		forget_if_unused(v, s);
}

/* Nobody reads what is in it any more. */
static void empty_file(struct view *v)
{
	io_truncate(v->log.file, 0);
	v->log.stored = 0;
}

static void flush_loop(void *arg)
{
	struct view *v = arg;
	struct view_log *l = &v->log;
	struct segment *s;

	view_enter(v);
	l->flushing = true;
	while (!v->broken && l->memory > view_memory / 2 && (s = next_to_write(v)) &&
	       !is_full(v, s))
		flush_one(v, s);
	l->flushing = false;
	if (v->broken)
		empty_file(v);
	view_leave(v);
}

static void flush_start(struct view *v)
{
	struct view_log *l = &v->log;

	if (l->flushing || l->memory <= view_memory / 2 || v->broken)
		return;
	if (co_self())
		co_start(flush_loop, v);
	else
		flush_loop(v);
}

/* -- giving back ------------------------------------------------------------------------- */

static void punch_one(struct view *v, struct segment *s)
{
	uint64_t given[DEAD_WORDS], skip[DEAD_WORDS];
	uint32_t i = 0, end;

	for (unsigned w = 0; w < DEAD_WORDS; w++) {
		given[w] = s->dead[w] & ~s->punched[w];
		skip[w] = ~given[w];
		s->punched[w] |= given[w];
	}
	while ((end = clear_run(skip, &i, s->filled)) > i) {
		uint64_t bytes = (uint64_t)(end - i) << v->bits;

		io_discard(v->log.file, file_offset(v, s, i), bytes);
		v->log.stored -= min_u64(bytes, v->log.stored);
		i = end;
	}
}

static void punch_loop(void *arg)
{
	struct view *v = arg;
	struct view_log *l = &v->log;
	struct segment *s;

	view_enter(v);
	l->punching = true;
	while ((s = l->punch)) {
		l->punch = s->next_punch;
		while (!v->broken && memcmp(s->dead, s->punched, sizeof(s->dead)))
			punch_one(v, s);
		s->punching = false;
		forget_if_unused(v, s);
		flush_start(v);		/* one may have waited for the log to have room */
	}
	l->punching = false;
	view_leave(v);
}

static void punch_later(struct view *v, struct segment *s)
{
	struct view_log *l = &v->log;

	if (s->punching)
		return;
	s->punching = true;
	s->next_punch = l->punch;
	l->punch = s;
	if (l->punching)
		return;
	if (co_self())
		co_start(punch_loop, v);
	else
		punch_loop(v);
}

/* -- filling ----------------------------------------------------------------------------- */

static struct segment *last_segment(struct view *v)
{
	struct view_log *l = &v->log;
	struct segment *s = l->n ? l->v[l->n - 1] : NULL;

	return s && !s->sealed ? s : NULL;
}

static bool make_room_in_table(struct view_log *l)
{
	uint64_t room = l->room ? l->room * 2 : 64;
	struct segment **more;

	if (l->n < l->room)
		return true;
	more = reallocarray(l->v, room, sizeof(*more));
	if (!more)
		return false;
	l->v = more;
	l->room = room;
	return true;
}

static struct segment *new_segment(struct view *v)
{
	struct view_log *l = &v->log;
	struct segment *s = calloc(1, sizeof(*s));
	void *mem = NULL;

	if (l->n_spare)
		mem = l->spare[--l->n_spare];
	else if (posix_memalign(&mem, 4096, segment_bytes(v)))
		mem = NULL;
	if (!s || !mem || !make_room_in_table(l)) {
		free(s);
		free(mem);
		return NULL;
	}
	s->mem = mem;
	s->number = l->n;
	l->v[l->n++] = s;
	l->memory += segment_bytes(v);
	return s;
}

static bool has_memory(const struct view *v, const struct patience *wait)
{
	uint64_t max = wait->gives_way ? view_memory : SLOW_FACTOR * view_memory;

	return v->log.memory + segment_bytes(v) <= max;
}

static struct segment *segment_with_room(struct view *v, struct patience *wait)
{
	struct view_log *l = &v->log;
	struct segment *s;

	while (!v->broken) {
		s = last_segment(v);
		if (s)
			return s;
		if (has_memory(v, wait)) {
			s = new_segment(v);
			if (!s)
				view_break(v, "Out of memory");
			return s;
		}
		flush_start(v);
		if (v->broken || has_memory(v, wait) || patience_wait(wait, &l->space))
			continue;
		if (wait->gives_way)
			return NULL;
		view_break(v, l->flushing ? "the fleece log is too slow for the guest"
					  : "the fleece log is full");
	}
	return NULL;
}

uint32_t view_log_reserve(struct view *v, uint32_t n, uint64_t *at, uint8_t **mem,
			  struct patience *wait)
{
	struct segment *s = segment_with_room(v, wait);
	uint32_t got;

	if (!s)
		return 0;
	got = (uint32_t)min_u64(n, v->log.per_segment - s->filled);
	*at = s->number * v->log.per_segment + s->filled;
	*mem = s->mem + ((size_t)s->filled << v->bits);
	s->filled += got;
	s->pending += got;
	s->live += got;
	s->sealed = s->filled == v->log.per_segment;
	return got;
}

void view_log_filled(struct view *v, uint64_t at, uint32_t n)
{
	struct segment *s = v->log.v[at / v->log.per_segment];

	s->pending -= n;
	if (v->broken && !s->pending)
		free_memory(v, s);
	forget_if_unused(v, s);
	flush_start(v);
}

static void drop_in_segment(struct view *v, struct segment *s, uint32_t first, uint32_t n)
{
	for (uint32_t i = first; i < first + n; i++)
		s->dead[i / 64] |= 1ull << (i % 64);
	s->live -= n;
	if (!s->mem)
		punch_later(v, s);
	else
		forget_if_unused(v, s);
}

void view_log_drop(struct view *v, uint64_t at, uint64_t n)
{
	uint32_t per = v->log.per_segment;

	while (n) {
		uint32_t now = (uint32_t)min_u64(n, per - at % per);

		drop_in_segment(v, v->log.v[at / per], (uint32_t)(at % per), now);
		at += now;
		n -= now;
	}
}

/* -- reading ------------------------------------------------------------------------------ */

/* LEN bytes from SKIP bytes after the beginning of block AT. */
int view_log_read(struct view *v, void *buf, uint64_t at, uint64_t skip, size_t len)
{
	struct view_log *l = &v->log;
	uint64_t pos = view_bytes(v, at) + skip;

	while (len) {
		uint64_t in = pos % segment_bytes(v);
		size_t now = (size_t)min_u64(len, segment_bytes(v) - in);
		struct segment *s = pos / segment_bytes(v) < l->n ? l->v[pos / segment_bytes(v)] : NULL;
		ssize_t got = (ssize_t)now;

		if (!s)
			return -ESTALE;		/* was released meanwhile */
		if (s->mem)
			memcpy(buf, s->mem + in, now);
		else
			got = io_pread(l->file, buf, now, pos);
		if (got < 0)
			return (int)got;
		if ((size_t)got < now)		/* the end was given back */
			memset((char *)buf + got, 0, now - (size_t)got);
		buf = (char *)buf + now;
		pos += now;
		len -= now;
	}
	return 0;
}

/* -- the end ------------------------------------------------------------------------------ */

static void give_file_up(void *arg)
{
	struct view *v = arg;

	view_enter(v);
	empty_file(v);
	view_leave(v);
}

void view_log_give_up(struct view *v)
{
	struct view_log *l = &v->log;

	if (!l->file)
		return;
	for (uint64_t i = 0; i < l->n; i++)
		if (l->v[i] && !l->v[i]->pending && !l->v[i]->writing)
			free_memory(v, l->v[i]);
	co_queue_wake_all(&l->space);
	if (!l->flushing && co_self())
		co_start(give_file_up, v);
}
