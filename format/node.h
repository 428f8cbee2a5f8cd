/* SPDX-License-Identifier: BSD-3-Clause */
/* node: one opened image or filter, addressed by node-name.
 *
 * Nodes form a DAG (children: file, backing, ...).  A node, its children and
 * its taps belong to one loop; all data functions are called there, inside the
 * gate of the disk.  node_read() and its siblings are the narrow waist that
 * every request crosses on every level: bounds, the taps, then the driver.
 *
 * Under the blocking table there is no loop and everything returns at once.
 */
#ifndef MERINO_NODE_H
#define MERINO_NODE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "common/extents.h"
#include "common/io.h"
#include "format/gate.h"

struct json_object;
struct loop;
struct node;
struct bitmap;
struct live;

#define NODE_NAME_MAX 31	/* bytes, as in QEMU */
#define NODE_CHAIN_MAX 100	/* nodes below one another: the stack's limit */
#define NODE_REQUEST_MAX (64u << 20)	/* bytes of one node_read() or node_write() */

/* QEMU's permissions, and its lock bytes (100 + bit held, 200 + bit not shared). */
enum node_perm {
	PERM_CONSISTENT_READ = 1,
	PERM_WRITE = 2,
	PERM_WRITE_UNCHANGED = 4,
	PERM_RESIZE = 8,
	PERM_ALL = 15,
};

enum node_child {
	CHILD_FILE,		/* the protocol node under a format */
	CHILD_BACKING,
	CHILD_DATA_FILE,	/* qcow2's external data file */
	CHILD_TARGET,		/* copy-before-write's: where old data goes */
	CHILD_COUNT,
};

enum node_write_flags {
	NODE_FUA = 1,		/* durable when it returns */
	NODE_MAY_UNMAP = 2,	/* zero: may leave a hole */
	NODE_NO_FALLBACK = 4,	/* zero: -ENOTSUP rather than slow (NBD FAST_ZERO) */
	NODE_MARK = 16,		/* write, zero: what is zero is marked so even where there is nothing
				 * and no backing image: the image may be put on one later */
	NODE_COMPRESS = 8,	/* write: store whole clusters compressed, where the driver can; a hint */
};

/* Something a write passes on its way in.  Both calls may suspend. */
struct tap {
	struct tap *next;
	const struct tap_ops *ops;
};

enum tap_kind { TAP_WRITE, TAP_ZERO, TAP_DISCARD };

/* What passes the taps: [off, off+len) is about to change.  On the stack of whoever
 * makes it; in node->passing from before the first tap is told until after the last. */
struct tap_request {
	struct tap_request *next, **prev;
	uint64_t off, len;		/* bytes */
	enum tap_kind kind;
	unsigned flags;			/* enum node_write_flags */
	bool *drop;			/* TAP_DISCARD: a tap sets it when the discard, a hint, shall not be done */
};

struct tap_ops {
	const char *name;
	/* Before the request is issued.  Never refuses it. */
	void (*before)(struct tap *t, const struct tap_request *rq);
	/* After it, with its result; NULL when not wanted.  A discard that nobody could do
	 * has succeeded, too: what reads as before is no failure. */
	void (*after)(struct tap *t, const struct tap_request *rq, int rc);
	/* The node is about to have SIZE bytes, fewer than now: -errno refuses.  NULL: it may. */
	int (*may_shrink)(struct tap *t, uint64_t size, struct error *err);
};

/* What requests are counted as (QEMU's BlockAcctType). */
enum io_kind { IO_KIND_READ, IO_KIND_WRITE, IO_KIND_FLUSH, IO_KIND_UNMAP, IO_KIND_COUNT };

/* Since it was opened.  Plain counters: one loop writes them, and reads them. */
struct io_stats {
	uint64_t ops[IO_KIND_COUNT], bytes[IO_KIND_COUNT];	/* that succeeded */
	uint64_t failed[IO_KIND_COUNT];
	uint64_t ns[IO_KIND_COUNT];	/* time that those took; exports only */
};

/* Who uses a node, and how.  Embedded in the user (a parent's child edge, an
 * export); linked into node->uses. */
struct node_use {
	struct node_use *next;
	struct node *node;
	unsigned perm, shared;		/* enum node_perm */
	bool linked;
	bool job;			/* a job's: nobody makes its requests wait */
	bool aside;			/* about to go: a successor takes its place */
	bool allow_inactive;		/* this user does without it: see activate.c */
	char what[80];			/* "export 'x'", "node 'y' as 'backing'": for error texts */
};

struct node_driver {
	const char *name;
	/* Names of the options beside the generic ones, NULL-terminated: what help,
	 * man page and schema list. */
	const char *const *options;
	bool filter;			/* shows CHILD_FILE as it is: see filter.h */
	/* Reads the driver's options out of OPTS (common/options.h), opens the
	 * children, sets size and state.  On failure the node is freed by the caller. */
	int (*open)(struct node *n, struct json_object *opts, struct error *err);
	/* Last flush, clean-close marks; frees state.  Also called after a failed open
	 * when state is set. */
	void (*close)(struct node *n);
	int (*read)(struct node *n, void *buf, uint64_t off, size_t len);
	int (*write)(struct node *n, const void *buf, uint64_t off, size_t len, unsigned flags);
	int (*zero)(struct node *n, uint64_t off, uint64_t len, unsigned flags);
	int (*discard)(struct node *n, uint64_t off, uint64_t len);
	int (*flush)(struct node *n);
	/* Appends extents from OFF on: this layer's only; backing is node_map_chain's work. */
	int (*map)(struct node *n, uint64_t off, uint64_t len, struct extents *x);
	int (*truncate)(struct node *n, uint64_t size, struct error *err);
	/* What this node asks of its children, given what is asked of it. */
	void (*child_perm)(struct node *n, enum node_child c, unsigned perm, unsigned shared,
			   unsigned *cperm, unsigned *cshared);
	/* Takes or gives back what protects the storage (lock bytes).  Protocol nodes only. */
	int (*set_perm)(struct node *n, unsigned perm, unsigned shared, struct error *err);
	/* The file range that holds [off, off+len) as it is, for sendfile(2); false: none. */
	bool (*host_range)(struct node *n, uint64_t off, uint64_t len,
			   struct io_file **f, uint64_t *host_off);
	/* ON: somebody waits for the requests in flight to end, so they should not wait for
	 * long themselves (a throttle, a server that does not answer); off again after. */
	void (*hurry)(struct node *n, bool on);
	/* Nodes with the same token belong on one loop, as if one were the other's child. */
	const void *(*together)(struct node *n);
	/* N is about to go to another loop: ends what it does by itself.  No request is in
	 * flight; on the old loop, may wait. */
	void (*leave)(struct node *n);
	/* N is on another loop: what the driver keeps of the old one follows.  On the
	 * new loop, must not wait. */
	void (*moved)(struct node *n);
	/* Opens the storage as the node's flags say now, beside the old one, which goes when
	 * all is well.  NULL: node_reopen() closes and opens. */
	int (*reopen)(struct node *n, struct error *err);
	/* Drivers with a backing image: whether the image names one, and: it was exchanged. */
	bool (*names_backing)(const struct node *n);
	void (*backing_changed)(struct node *n);
	bool of_an_instant;		/* shows its child as it was once */
	bool child_is_image;		/* CHILD_FILE is the option "image" */
	/* Adds format-specific members to QEMU's ImageInfo object. */
	void (*info)(struct node *n, struct json_object *image);
};

/* Where the bitmaps of an image that can hold none are kept: a file beside it
 * (bitmaps/store-raw.c, format/sidecar.c). */
struct node_sidecar {
	bool possible;			/* N is a file, or shows all of one as it is */
	bool trust;			/* "trust-sidecar" */
	bool held;			/* bitmaps/ has it open: nobody but N's users may write below N,
					 * and no other process, even while none of them does */
	char *dir;			/* "sidecar-dir"; owned; NULL: beside the file */
};

struct node {
	char name[NODE_NAME_MAX + 1];
	const struct node_driver *driver;
	void *state;			/* the driver's */
	struct graph *graph;
	struct loop *loop;		/* NULL under the blocking table */
	struct io *io;
	uint64_t size;			/* bytes, as seen from above */
	bool read_only;
	bool auto_read_only;		/* may fall back to read only */
	bool discard_unmap;		/* "discard": pass discards down ("unmap"), or drop them */
	bool detect_zeroes;		/* long runs of zeroes in a write become node_zero()'s */
	bool detect_unmap;		/* … that may leave holes */
	bool force_share;		/* no lock bytes, read only */
	bool cache_direct, cache_no_flush;
	unsigned viewed;		/* views that need what is below to stay: see reopen.c */
	bool monitor_owned;		/* made by blockdev-add: blockdev-del may delete it */
	bool protocol;			/* bottom of the graph: may be read behind its end (zeroes) */
	bool inactive;			/* another process may write to it: see activate.c */
	bool wants_write;		/* while inactive: what read_only will be again, negated */
	bool frozen;			/* lock bytes stay as they are: see reopen.c */
	bool may_grow;			/* a user holds PERM_RESIZE: writes may pass the end */
	unsigned level;			/* how deep below the node that was asked for */
	unsigned refs;			/* graph->lock */
	char *filename;			/* what query commands show; owned */
	struct json_object *options;	/* the driver's, children left out; owned */
	struct io_stats stats;
	uint64_t instant;		/* a view: when what it shows of the node below was so
					 * (ns, CLOCK_MONOTONIC; after the gates were closed); 0: now */
	uint64_t wr_highest;		/* end of the highest write, bytes */
	uint64_t write_threshold;	/* block-set-write-threshold; 0: none */
	struct node *child[CHILD_COUNT];
	struct node_use child_use[CHILD_COUNT];
	struct node_use *uses;
	struct tap *taps;
	struct tap_request *passing;	/* requests under way, where there are taps; the newest first */
	struct gate gate;		/* used when the node is the root of a disk */
	struct bitmap *bitmaps;		/* owned by bitmaps/ */
	struct live *live;		/* owned by bitmaps/: the file that their bits are in */
	struct node_sidecar sidecar;
	struct node *next;		/* in graph->nodes */
};

/* All named nodes of a process. */
struct graph {
	pthread_mutex_t lock;		/* control path only; never held across a suspend */
	struct node *nodes;
	unsigned next_auto;		/* number of the next "#block000" */
	int close_rc;			/* of the first node that could not be closed cleanly: for tools */
};

void graph_init(struct graph *g);

/* Where nodes are opened. */
struct node_place {
	struct graph *graph;
	struct loop *loop;		/* may be NULL */
	struct io *io;
};

/* Opens a node from QEMU's BlockdevOptions (a private copy: OPTS is consumed in
 * place, not freed) and its children.  *OUT carries one reference.  Runs on
 * the place's loop. */
int node_open(const struct node_place *where, struct json_object *opts, struct node **out,
	      struct error *err);

/* A node with no options but a name (NULL: made up), of a driver that people cannot ask
 * for; *OUT carries one reference.  On the place's loop. */
int node_open_internal(const struct node_place *where, const struct node_driver *driver,
		       const char *name, struct node **out, struct error *err);

/* For drivers: opens or references the child that OPTS[KEY] describes (an
 * object, or the name of a node) and attaches it.  -ENOENT without an error
 * text when KEY is absent. */
int node_open_child(struct node *n, struct json_object *opts, const char *key,
		    enum node_child c, struct error *err);

/* For drivers: opens the child from options made by the driver itself. */
int node_open_child_with(struct node *n, struct json_object *child_opts, enum node_child c,
			 struct error *err);

/* Other options for N (a private copy, consumed in place): see reopen.c.  The gates
 * above are closed.  On failure N is as it was before. */
int node_reopen(struct node *n, struct json_object *opts, struct error *err);
/* The node alone becomes read only or writable; its driver reads the storage anew. */
int node_set_writable(struct node *n, bool writable, struct error *err);
/* activate.c: the node, and what is below it for nobody else.  The gates above are closed. */
int node_set_active(struct node *n, bool active, struct error *err);
bool node_has_active_parent(const struct node *n);
/* What the nodes above do with N may follow from whether N is read only: copy-on-read. */
int node_refresh_parents(const struct node *n, struct error *err);
/* What node_reopen() would change nothing with; the caller owns it. */
struct json_object *node_present_options(const struct node *n);
/* For reopen.c: the options that all drivers have, but node-name, into N's flags; and a
 * child that takes the caller's reference. */
int node_take_flags(struct node *n, struct json_object *opts, struct error *err);
int node_attach_child(struct node *n, struct node *child, enum node_child c, struct error *err);

/* N, whose driver has backing images, stands on BACKING (NULL: none) from now on, which
 * gets a reference of its own.  The gates above N are closed. */
int node_set_backing(struct node *n, struct node *backing, struct error *err);

/* A named node with one more reference, or NULL. */
struct node *node_find(struct graph *g, const char *name);
struct node *node_ref(struct node *n);
/* Takes N and all that hangs together with it to another loop; the caller holds one
 * reference of N, and nobody but the group and the monitor uses a node of it: else -EBUSY.
 * Coroutine on a loop that is neither; no node is opened or closed meanwhile. */
int node_move(struct node *n, struct loop *to, struct error *err);

/* Drops a reference; the last one closes the node and its children.  On the
 * node's loop, in a coroutine (or under the blocking table).  NULL is fine. */
void node_unref(struct node *n);

/* Adds a user; checks it against the other users and takes the lock bytes on
 * the storage below.  -EPERM with QEMU's words on a conflict, -EBUSY when
 * another process holds the file ("Failed to get \"write\" lock"). */
int node_use_add(struct node_use *u, struct node *n, unsigned perm, unsigned shared,
		 struct error *err, const char *what_fmt, ...)
	__attribute__((format(printf, 6, 7)));
/* Has storage and children follow what N asks now. */
int node_use_refresh(struct node *n, struct error *err);
/* The lock bytes of the storage below stay as they are until a refresh after it is over. */
void node_freeze(struct node *n, bool on);
void node_use_drop(struct node_use *u);	/* a use that was never added is fine */

void node_tap_add(struct node *n, struct tap *t);
void node_tap_remove(struct node *n, struct tap *t);	/* with the gates above closed */

/* The data path: 0 or -errno.  [OFF, OFF+LEN) must lie inside the node
 * (-EINVAL, writes -ENOSPC); a read-only node refuses writes (-EPERM). */
int node_read(struct node *n, void *buf, uint64_t off, size_t len);
int node_write(struct node *n, const void *buf, uint64_t off, size_t len, unsigned flags);
int node_zero(struct node *n, uint64_t off, uint64_t len, unsigned flags);
int node_discard(struct node *n, uint64_t off, uint64_t len);
int node_flush(struct node *n);
int node_map(struct node *n, uint64_t off, uint64_t len, struct extents *x);
int node_truncate(struct node *n, uint64_t size, struct error *err);

/* The next one down the chain: what a filter shows, or the backing image; or NULL. */
static inline struct node *node_below(const struct node *n)
{
	return n->child[n->driver->filter ? CHILD_FILE : CHILD_BACKING];
}

/* Whether WHAT is N or somewhere below it. */
bool node_is_below(const struct node *n, const struct node *what);

/* The node that N shows: N itself, or what is below the filters over it. */
struct node *node_skip_filters(struct node *n);

/* Tells N and all below it: see node_driver's hurry.  Calls nest. */
void node_hurry(struct node *n, bool on);

/* Closes N's gate as gate_close() does, and hurries what is inside. */
int node_gate_close(struct node *n, uint64_t timeout_ns);

/* As node_map(), with the backing chain looked through: EXTENT_UNALLOCATED only
 * where no layer has anything (with EXTENT_ZERO|EXTENT_HOLE); depth counts
 * layers, 1 is N itself. */
int node_map_chain(struct node *n, uint64_t off, uint64_t len, struct extents *x);

/* How long (ns) whoever opens a file waits for another process's lock bytes to go.  At
 * the start of the process; 2 s when nobody says. */
void file_lock_patience(uint64_t ns);

/* The driver is host_device: what lies behind the end, or was freed, is not zero. */
bool node_on_block_device(const struct node *n);

/* The open file of a file or host_device node; NULL for all others. */
struct io_file *node_storage(const struct node *n);

/* Where in its file a raw node begins, bytes; 0 for all others. */
uint64_t raw_offset_of(const struct node *n);

bool node_host_range(struct node *n, uint64_t off, uint64_t len, struct io_file **f,
		     uint64_t *host_off);

extern const struct node_driver file_driver, host_device_driver, raw_driver, qcow2_driver;
extern const struct node_driver null_driver, blkdebug_driver, nbd_driver;
extern const struct node_driver throttle_driver, cor_driver, compress_driver;

/* Drivers, for help and lookup; ends with NULL. */
extern const struct node_driver *node_drivers[];
/* Those of backup/ are above format/ and add themselves at start. */
void node_driver_add(const struct node_driver *d);
const struct node_driver *node_driver_find(const char *name);

/* bitmaps/ is above format/: it hooks in here (bitmaps/store.c) so that qcow2
 * can load what it stores at open and store it at a clean close. */
struct node_bitmap_hooks {
	int (*load)(struct node *n, struct error *err);		/* end of a driver's open */
	int (*store)(struct node *n, struct error *err);	/* before a clean close */
	void (*drop)(struct node *n);				/* frees what is in memory */
	/* The image is closed and opened again: may those that are stored in it be freed?  And
	 * frees them; load brings them back. */
	int (*may_forget)(struct node *n, struct error *err);
	void (*forget)(struct node *n);
	/* After the close.  STORED: the image has them, and says so. */
	void (*closed)(struct node *n, bool stored);
	/* As the driver's. */
	void (*leave)(struct node *n);
	void (*moved)(struct node *n);
};
extern const struct node_bitmap_hooks *node_bitmap_hooks;

/* What the daemon wants to be told of (nbd-server/events.c).  Called on the node's
 * loop; must not wait.  NULL: nobody listens. */
struct node_event_hooks {
	/* The image was marked corrupt, or found to be: QMP's BLOCK_IMAGE_CORRUPTED.
	 * OFF and LEN are UINT64_MAX when they make no sense. */
	void (*corrupted)(struct node *n, const char *msg, uint64_t off, uint64_t len, bool fatal);
	/* A write ended AMOUNT bytes past THRESHOLD, which is not set any more. */
	void (*threshold_exceeded)(struct node *n, uint64_t amount, uint64_t threshold);
};
extern const struct node_event_hooks *node_event_hooks;

#endif
