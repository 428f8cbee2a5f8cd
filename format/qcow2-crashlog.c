// SPDX-License-Identifier: BSD-3-Clause
/* qcow2-crashlog: writing the log of mappings (its bytes and rules: qcow2-crashlog.h).
 *
 * A ring.  From half full on, a flush is under way that makes room; from three
 * quarters on, who wants to change a mapping waits for it before it writes its data
 * (crashlog_room()).  The last quarter is for those who are past that point: each
 * needs four records at most, and a loop serves no more than 4,096 requests at a time.
 *
 * Opening:  log made, then the header (nonce, then bit), then the first change.
 * Closing:  tables durable, then the bit goes from the header, then the log.
 */
#include "format/qcow2-int.h"

#include <errno.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "common/log.h"
#include "common/options.h"
#include "format/qcow2-crashlog.h"

size_t qcow2_crashlog_bytes = 4u << 20;		/* 130,944 records */

int crashlog_options(struct qcow2 *s, struct json_object *opts, struct error *err)
{
	static const char *const modes[] = { "auto", "on", "off", NULL };
	int rc = opts_enum(opts, "crash-log", modes, &s->log_mode, err);

	if (!rc)
		rc = opts_str(opts, "crash-log-dir", &s->log_dir, err);
	if (!rc && s->log_dir && s->log_mode == CRASHLOG_OFF)
		rc = error_set(err, -EINVAL, "crash-log-dir makes no sense with crash-log=off");
	if (!rc && s->log_dir && s->log_dir[0] != '/')
		rc = error_set(err, -EINVAL, "crash-log-dir must be an absolute path");
	return rc;
}

/* Whether the file below is one whose log can be found again. */
static bool has_place(const struct qcow2 *s)
{
	struct io_file *f = node_storage(s->file);

	return f && (s->log_dir || !f->is_block_device);
}

struct io_file *qcow2_live_place(struct node *n, const char **dir)
{
	struct qcow2 *s = qcow2_of(n);

	*dir = s->log_dir;
	return s->h.version < 3 || s->log_mode == CRASHLOG_OFF || !has_place(s) ? NULL : node_storage(s->file);
}

static int random_bytes(uint8_t *p, size_t len)
{
	ssize_t n;

	do
		n = getrandom(p, len, 0);
	while (n < 0 && errno == EINTR);
	return n == (ssize_t)len ? 0 : -EIO;
}

static int make(struct qcow2 *s, struct error *err)
{
	struct io_file *f = node_storage(s->file);
	size_t bytes = qcow2_crashlog_bytes;
	struct crashlog *l = calloc(1, sizeof(*l));
	struct io_identity id;
	int rc;

	if (!l)
		return error_set(err, -ENOMEM, "Out of memory");
	rc = io_identity(f, &id);
	if (rc)
		error_errno(err, rc, "Could not identify '%s'", qcow2_name(s));
	if (!rc)
		rc = io_mapped_make(f, s->log_dir, bytes, &l->map, err);
	if (rc) {
		free(l);
		return rc;
	}
	l->head = (struct crashlog_head *)l->map->mem;
	l->slot = (struct crashlog_record *)(l->map->mem + CRASHLOG_HEAD);
	*l->head = (struct crashlog_head){
		.version = CRASHLOG_VERSION, .head_bytes = CRASHLOG_HEAD, .dev = id.dev, .ino = id.ino,
		.record_bytes = sizeof(struct crashlog_record),
		.slots = (bytes - CRASHLOG_HEAD) / sizeof(struct crashlog_record),
	};
	memcpy(l->head->boot, id.boot, sizeof(id.boot));
	s->log = l;
	rc = random_bytes(l->head->nonce, CRASHLOG_NONCE);
	if (!rc)
		rc = qcow2_ext_put(&s->h, QCOW2_EXT_OPEN, l->head->nonce, CRASHLOG_NONCE);
	if (rc)
		return error_errno(err, rc, "Could not make a crash log");
	memcpy(l->head->magic, CRASHLOG_MAGIC, sizeof(l->head->magic));
	return 0;
}

static void drop_log(struct qcow2 *s, bool remove)
{
	if (!s->log)
		return;
	io_mapped_end(s->log->map, remove);
	free(s->log);
	s->log = NULL;
}

/* Goes on without a log, if that is allowed. */
static int without(struct qcow2 *s, int rc, struct error *why, struct error *err)
{
	drop_log(s, true);
	qcow2_ext_drop(&s->h, QCOW2_EXT_OPEN);
	if (s->log_mode == CRASHLOG_ON) {
		if (err)
			*err = *why;
		return rc;
	}
	log_warning("no crash log: what is not flushed is lost when the process is killed; see crash-log-dir: image=%s error=%s",
		    qcow2_name(s), why->text);
	return 0;
}

int crashlog_begin(struct qcow2 *s, struct error *err)
{
	struct error why = ERROR_INIT;
	int rc = 0;

	if (s->node->read_only || s->h.version < 3)
		return 0;
	qcow2_ext_drop(&s->h, QCOW2_EXT_OPEN);
	if (s->log_mode != CRASHLOG_OFF && has_place(s)) {
		rc = make(s, &why);
		if (rc)
			rc = without(s, rc, &why, err);
	} else if (s->log_mode == CRASHLOG_ON) {
		rc = error_set(err, -ENOTSUP, "crash-log=on needs crash-log-dir, or an image in a regular file");
	}
	if (rc)
		return rc;
	s->h.autoclear |= QCOW2_OPEN;
	if (s->log && !qcow2_header_has_room(s)) {
		error_errno(&why, -ENOSPC, "The qcow2 header has no room for an extension");
		rc = without(s, -ENOSPC, &why, err);
		if (rc)
			return rc;
	}
	rc = qcow2_header_write(s);
	s->begun = !rc;
	if (rc)
		drop_log(s, true);
	return rc ? error_errno(err, rc, "Could not update qcow2 header") : 0;
}

int crashlog_end(struct qcow2 *s, bool clean)
{
	int rc = 0;

	if (clean && s->begun) {
		s->h.autoclear &= ~(uint64_t)QCOW2_OPEN;
		qcow2_ext_drop(&s->h, QCOW2_EXT_OPEN);
		if (s->live_ends)
			qcow2_live_drop(s);
		rc = qcow2_header_write(s);
	}
	drop_log(s, clean && !rc);
	return rc;
}

static uint64_t used(const struct crashlog *l)
{
	return l->head->end - l->head->begin;
}

int crashlog_room_wait(struct qcow2 *s)
{
	struct crashlog *l = s->log;
	int rc = 0;

	while (!rc && used(l) > l->head->slots / 4 * 3)
		rc = qcow2_flush_room(s);
	return rc;
}

bool crashlog_is_full(const struct qcow2 *s)
{
	return used(s->log) > s->log->head->slots / 4 * 3;
}

/* Whether R goes on where the last record ends, which then covers both.  It is one
 * store, so that a reader finds the old record or the new one. */
static bool merge(struct crashlog *l, const struct crashlog_record *r, unsigned cluster_bits)
{
	struct crashlog_record *last = crashlog_at(l, l->head->end - 1);
	uint64_t step = r->step_bits ? 1ull << r->step_bits : 0;

	if (l->head->end == l->head->begin || l->head->end == l->sealed)
		return false;
	if (r->kind != CRASHLOG_L2 || last->kind != CRASHLOG_L2 || last->step_bits != r->step_bits ||
	    last->bits != r->bits || last->count > UINT32_MAX / 2 || r->count > UINT32_MAX / 2 ||
	    last->where + ((uint64_t)last->count << cluster_bits) != r->where ||
	    last->entry + last->count * step != r->entry)
		return false;
	__atomic_store_n(&last->count, last->count + r->count, __ATOMIC_RELEASE);
	return true;
}

static void note(struct qcow2 *s, const struct crashlog_record *r)
{
	struct crashlog *l = s->log;

	if (merge(l, r, s->cluster_bits))
		return;
	if (used(l) == l->head->slots) {
		l->head->lost = 1;
		if (!l->said)
			log_error("the crash log is full: image=%s", qcow2_name(s));
		l->said = true;
		return;
	}
	*crashlog_at(l, l->head->end) = *r;
	__atomic_store_n(&l->head->end, l->head->end + 1, __ATOMIC_RELEASE);
	if (used(l) > l->head->slots / 2)
		qcow2_flush_start(s);
}

void crashlog_note_l2(struct qcow2 *s, uint64_t guest, uint64_t count, uint64_t entry, uint64_t step,
		      uint64_t bits)
{
	note(s, &(struct crashlog_record){
		.kind = CRASHLOG_L2, .where = guest, .count = count, .entry = entry, .bits = bits,
		.step_bits = step ? __builtin_ctzll(step) : 0 });
}

void crashlog_note_l1(struct qcow2 *s, uint64_t index, uint64_t entry)
{
	if (s->log && qcow2_test_break_order != 4)
		note(s, &(struct crashlog_record){ .kind = CRASHLOG_L1, .where = index, .count = 1,
						   .entry = entry });
}

void crashlog_void(struct qcow2 *s)
{
	if (s->log)
		s->log->head->magic[0] = 0;
}

uint64_t crashlog_seal(struct qcow2 *s)
{
	if (!s->log)
		return 0;
	s->log->sealed = s->log->head->end;
	if (qcow2_test_break_order == 5)
		s->log->head->begin = s->log->sealed;
	return s->log->sealed;
}

void crashlog_drop(struct qcow2 *s, uint64_t sealed)
{
	if (s->log)
		__atomic_store_n(&s->log->head->begin, sealed, __ATOMIC_RELEASE);
}
