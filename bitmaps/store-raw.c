/* SPDX-License-Identifier: BSD-3-Clause */
/* store-raw: persistent bitmaps of images that can hold none: raw files, block devices.
 *
 * They are in the live file (live.h) beside the image, ".NAME.bitmaps", or in a directory
 * that was given: the sidecar.  It is all there is: while the image is open the bits are in it,
 * and the clean close leaves it there, marked as closed.  doc/formats/bitmaps-sidecar.md
 * describes the bytes.
 *
 * Nothing in a raw image says whether somebody wrote to it meanwhile.  So what the sidecar
 * says is believed only when nothing speaks against it:
 *
 *			regular file			block device
 *	closed		inode, size, time of last	number, size, and the bytes at both
 *			write as at the close		ends as at the close
 *	killed		last written (mtime, ctime) no	never, but with trust-sidecar=on
 *			later than by us (the stamp)
 *	power lost	the same, with more slack, and	the same
 *			before the machine started
 *
 * Else the bitmaps are there, inconsistent: the next backup is a full one.  A file that makes
 * no sense, or is another image's, is left alone, and a line in the log says so.
 *
 * Who has bitmaps in a sidecar keeps other writers away from the file below it
 * (node->sidecar.held), other processes by its lock bytes: what would write past the
 * bitmaps is refused.  A read-only open reads the sidecar and changes nothing.
 */
#include "bitmaps/store-raw.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bitmaps/live-int.h"
#include "common/log.h"

#define BUDGET (1ull << 30)		/* bytes of bits that one sidecar may make us take */
#define KILL_SLACK 2000000000ll		/* ns between the last stamp and the kernel's write of it */
#define LOSS_SLACK 60000000000ll	/* … when the stamp was not synced for a while */
#define TICK 20000000ll			/* ns; a file's time of last write is no finer than this */
#define ENDS (64u << 10)		/* bytes of a block device that tell it from others */

/* Bare files have their own: what is above them may be opened without it. */
static enum live_kind kind_of(const struct node *n)
{
	return node_storage(n) ? LIVE_FILE : LIVE_RAW;
}

static struct io_file *storage(const struct node *n)
{
	struct io_file *f = node_storage(n);

	return f || !n->child[CHILD_FILE] ? f : node_storage(n->child[CHILD_FILE]);
}

static const char *name_of(const struct node *n)
{
	return n->filename ? n->filename : n->name;
}

static bool has_place(const struct node *n)
{
	struct io_file *f = storage(n);

	return n->sidecar.possible && f && (n->sidecar.dir || !f->is_block_device);
}

static bool any_persistent(const struct node *n)
{
	for (const struct bitmap *b = n->bitmaps; b; b = b->next)
		if (b->persistent)
			return true;
	return false;
}

/* -- is it still the image that the sidecar was written for? ---------------------------- */

/* The first and the last bytes of a block device: partition tables, superblocks and volume
 * labels tell two devices apart whose numbers were exchanged. */
static int fingerprint(struct node *n, int64_t *print)
{
	uint64_t len = min_u64(ENDS, align_down(n->size, 4096));
	uint8_t *p = aligned_alloc(4096, 2 * (size_t)ENDS);
	int rc = p ? 0 : -ENOMEM;

	if (!rc)
		rc = node_read(n, p, 0, len);
	if (!rc)
		rc = node_read(n, p + len, align_down(n->size, 4096) - len, len);
	if (!rc)
		*print = (int64_t)((uint64_t)live_crc(p, len) << 32 | live_crc(p + len, len));
	free(p);
	return rc;
}

static int state_now(struct node *n, struct live_image *now)
{
	struct io_file *f = storage(n);
	struct io_identity id;
	int rc = io_identity(f, &id);

	if (rc)
		return rc;
	now->size = f->is_block_device ? n->size : id.size;
	now->mark = id.mtime;
	return f->is_block_device ? fingerprint(n, &now->mark) : 0;
}

static const char *written_after_close(struct node *n, const struct live_found *f)
{
	struct live_image now;

	if (state_now(n, &now))
		return "the image cannot be read";
	if (now.size != f->table.image.size)
		return "the image has another size than when it was closed";
	if (now.mark != f->table.image.mark)
		return "the image was written to by somebody else";
	return NULL;
}

static const char *written_after_crash(struct node *n, const struct live_found *f)
{
	struct io_identity id;
	int64_t last;

	if (storage(n)->is_block_device)
		return n->sidecar.trust ? NULL : "it was in use when its owner died, and nobody can "
			"say who wrote to a block device since (trust-sidecar=on: nobody did)";
	if (io_identity(storage(n), &id))
		return "the image cannot be looked at";
	/* Who copies an older image over it (cp -p, rsync --times) sets its time of last write. */
	last = id.mtime > id.ctime ? id.mtime : id.ctime;
	if (last > f->stamp + (f->same_boot ? KILL_SLACK : LOSS_SLACK) || (!f->same_boot && last >= id.booted))
		return "the image was written to by somebody else";
	return NULL;
}

/* Why its bits cannot be used, or NULL. */
static const char *distrust(struct node *n, const struct live_found *f)
{
	return f->table.flags & LIVE_CLOSED ? written_after_close(n, f) : written_after_crash(n, f);
}

/* -- open ------------------------------------------------------------------------------- */

/* 0: F is one that belongs to N.  -ENOENT: none does. */
static int find(struct node *n, struct live_found *f)
{
	const char *why = "";
	int rc = live_find(storage(n), n->sidecar.dir, kind_of(n), NULL, f, &why);

	if (!rc || rc == -ENOENT || rc == -ENOTSUP || rc == -EMEDIUMTYPE)
		return rc ? -ENOENT : 0;	/* another kind: that of the node above or below */
	log_warning("the bitmaps beside the image cannot be used: %s image=%s error=%s", why,
		    name_of(n), strerror(-rc));
	return -ENOENT;
}

/* Others keep off, from now on.  While a node is opened anew its children do not follow it
 * yet: here they have to. */
static int hold(struct node *n, struct error *err)
{
	struct node *below = n->child[CHILD_FILE];
	bool frozen = below && below->frozen, self = n->frozen;
	int rc;

	if (n->sidecar.held)
		return 0;
	n->sidecar.held = true;
	n->frozen = false;
	if (below)
		below->frozen = false;
	rc = node_use_refresh(n, err);
	if (rc)
		n->sidecar.held = false;
	if (below)
		below->frozen = frozen;
	n->frozen = self;
	return rc;
}

static void let_go(struct node *n)
{
	n->sidecar.held = false;
	node_use_refresh(n, NULL);	/* asks for less: cannot fail */
}

/* OLD: the one that is there.  The new one has its session: until it has marked regions of
 * its own, those of the old one count. */
static int begin(struct node *n, const struct live_found *old, struct error *err)
{
	uint8_t session[LIVE_SESSION];
	int rc = old ? 0 : live_new_session(session);

	if (old)
		memcpy(session, old->head.session, LIVE_SESSION);

	if (rc)
		return error_errno(err, rc, "Could not make a session");
	return live_start(n, storage(n), n->sidecar.dir, kind_of(n), session, !old, err);
}

static const char *load_bits(struct node *n, struct live_found *f, uint32_t i, uint64_t *budget,
			     struct bitmap **b)
{
	const struct live_entry *e = &f->v[i];

	if (e->h.flags & LIVE_INCONSISTENT)
		return "it was before";
	if (bitmap_data_bytes(n->size, e->h.granularity_bits) > BITMAP_BYTES_MAX)
		return "it needs too much memory";
	if (bitmap_new(n, e->name, e->h.granularity_bits, false, b, NULL))
		return "out of memory";
	if (live_found_bits(f, i, *b, budget))
		return "its bits cannot be read";
	return NULL;
}

static void load_one(struct node *n, struct live_found *f, uint32_t i, uint64_t *budget,
		     const char *why)
{
	const struct live_entry *e = &f->v[i];
	struct bitmap *b = NULL;

	if (bitmap_find(n, e->name, NULL))
		return;
	if (!why)
		why = load_bits(n, f, i, budget, &b);
	if (!b)
		bitmap_new(n, e->name, e->h.granularity_bits, true, &b, NULL);
	if (!b)
		return;
	b->persistent = true;
	b->read_only = n->read_only;
	b->enabled = e->h.flags & LIVE_RECORDING;
	if (!why)
		return;
	bitmap_set_inconsistent(b);
	log_warning("bitmap is inconsistent and can only be removed: %s image=%s bitmap=%s", why,
		    name_of(n), e->name);
}

/* The older ones first, as they were made. */
static void load_all(struct node *n, struct live_found *f)
{
	const char *why = distrust(n, f);
	uint64_t budget = BUDGET;

	for (uint32_t i = f->table.entries; i-- > 0;)
		load_one(n, f, i, &budget, why);
	if (!why && !(f->table.flags & LIVE_CLOSED))
		log_info("bitmaps are as they were when their owner died: image=%s after=%s",
			 name_of(n), f->same_boot ? "kill" : "power-loss");
	if (f->table.flags & LIVE_INCOMPLETE)
		log_warning("bitmaps were lost that found no room beside the image: image=%s",
			    name_of(n));
}

/* From here on the sidecar says that it is in use, so nothing that is written gets lost. */
static int load_to_write(struct node *n, struct live_found *f, struct error *err)
{
	int rc;

	load_all(n, f);
	rc = begin(n, f, err);
	if (rc)
		/* The old one must not be taken for the truth later. */
		live_found_remove(f);
	return rc;
}

int store_raw_load(struct node *n, struct error *err)
{
	struct error why = ERROR_INIT;
	struct live_found f;

	if (!has_place(n) || n->live || n->force_share || find(n, &f))
		return 0;
	if (n->read_only) {
		load_all(n, &f);
		live_found_end(&f);
		return 0;
	}
	live_found_end(&f);
	if (hold(n, &why)) {
		log_warning("the bitmaps beside the image are not used, as others use it: image=%s "
			    "reason=%s", name_of(n), why.text);
		return 0;
	}
	/* Its owner may have gone while we waited. */
	if (find(n, &f)) {
		let_go(n);
		return 0;
	}
	if (load_to_write(n, &f, &why))
		log_warning("persistent bitmaps do not survive a crash of this disk: image=%s "
			    "reason=%s", name_of(n), why.text);
	live_found_end(&f);
	return 0;
}

/* -- close ------------------------------------------------------------------------------ */

/* Two writes within a tick of the clock leave the same time. */
static void let_time_pass(struct node *n)
{
	struct io_identity id;
	int64_t age;

	if (storage(n)->is_block_device || io_identity(storage(n), &id))
		return;
	age = live_now() - id.mtime;
	if (age >= 0 && age < TICK)
		io_sleep(n->io, (uint64_t)(TICK - age));
}

static int close_clean(struct node *n, struct error *err)
{
	struct live_image now;
	int rc = 0;

	if (!live_is_on(n)) {
		live_end(n, true);
		rc = begin(n, NULL, err);
	}
	if (rc)
		return rc;
	rc = node_flush(n);
	if (rc)
		return error_errno(err, rc, "Could not flush '%s'", name_of(n));
	let_time_pass(n);
	rc = state_now(n, &now);
	if (!rc)
		rc = live_close_clean(n, &now);
	return rc ? error_errno(err, rc, "Could not write the bitmaps of '%s'", name_of(n)) : 0;
}

/* A sidecar that could not be closed is one whose owner died. */
int store_raw_store(struct node *n, struct error *err)
{
	bool any = any_persistent(n);
	int rc = any ? close_clean(n, err) : 0;

	live_end(n, !any);
	let_go(n);
	return rc;
}

/* -- bitmaps come and go ---------------------------------------------------------------- */

/* Whose sidecar is there already: N's child's, a node's above it, or nobody's. */
static int check_others(struct node *n, struct error *err)
{
	struct node *file = n->child[CHILD_FILE];
	struct live_found f;
	const char *why;
	int rc;

	if (file && file->sidecar.held)
		return error_set(err, -EBUSY, "The bitmaps of '%s' are kept on node '%s'", name_of(n),
				 file->name);
	rc = live_find(storage(n), n->sidecar.dir, kind_of(n), NULL, &f, &why);
	if (!rc)
		live_found_end(&f);
	if (rc == -EMEDIUMTYPE)
		return error_set(err, -EBUSY, "There are bitmaps beside '%s' already that another node "
				 "over it keeps", name_of(n));
	return 0;
}

int store_raw_expect(struct node *n, struct error *err)
{
	int rc;

	if (n->live)
		return 0;
	rc = check_others(n, err);
	if (!rc)
		rc = hold(n, err);
	if (rc)
		return rc;
	rc = begin(n, NULL, err);
	if (rc && !any_persistent(n))
		let_go(n);
	return rc;
}

int store_raw_can_add(struct node *n, const char *name, unsigned granularity_bits,
		      struct error *err)
{
	int rc;

	if (n->read_only)
		return error_set(err, -EROFS, "The image is read only");
	if (!n->size)
		return error_set(err, -EINVAL, "The image is empty");
	if (!has_place(n))
		return error_set(err, -ENOTSUP, "A block device needs the option sidecar-dir");
	if (bitmap_data_bytes(n->size, granularity_bits) > BITMAP_BYTES_MAX)
		return error_set(err, -EFBIG, "Too much space will be occupied by the bitmap. "
				 "Use larger granularity");
	rc = store_raw_expect(n, err);
	if (!rc && !live_fits(n, strlen(name)))
		rc = error_set(err, -ENOSPC, "There is no room for more bitmaps beside the image");
	return rc;
}

int store_raw_remove(struct bitmap *b)
{
	struct node *n = b->node;

	/* The entry goes when B is freed. */
	for (const struct bitmap *o = n->bitmaps; o; o = o->next)
		if (o->persistent && o != b)
			return 0;
	live_end(n, true);
	let_go(n);
	return 0;
}

bool store_is_raw(const struct node *n)
{
	return n->sidecar.possible;
}
