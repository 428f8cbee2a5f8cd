/* SPDX-License-Identifier: BSD-3-Clause */
/* repo: a directory of restore points (doc/formats/backup-repository.md).
 *
 *	DIR/repository.json		makes DIR a repository
 *	DIR/POINT.json			the manifest: the point exists when this does
 *	DIR/DISK@POINT.qcow2		one disk at that point, over its parent's file
 *	DIR/DISK@POINT.sums		which chunks the point has, and their SHA-256
 *	DIR/.POINT.unfinished		a run that has not come to its end makes this point
 *	DIR/POINT.damaged		`merino verify` found it damaged: why
 *	DIR/.lock, DIR/.in-use		flock: one writer; readers against prune
 *
 * Everything in a repository is a stranger's: names are made from checked parts and
 * never followed where a file says so, counts and lengths have limits.  A manifest that
 * does not prove itself is a damaged point, never an error that hides the others.
 */
#ifndef MERINO_REPO_H
#define MERINO_REPO_H

#include <stdbool.h>
#include <stdint.h>

#include "clients/sums.h"
#include "common/error.h"

enum {
	REPO_NAME_MAX = 64,		/* bytes of a point's id */
	REPO_DISK_MAX = 64,		/* bytes of a disk's name; three times that in a file's */
	REPO_FILE_MAX = 3 * REPO_DISK_MAX + 1 + REPO_NAME_MAX + 16,
	REPO_POINTS = 65536,		/* at most, in a repository */
	REPO_DISKS = 256,		/* at most, in a point */
	REPO_MANIFEST_MAX = 4 << 20,	/* bytes */
	REPO_CHAIN_MAX = 64,		/* files over one another */
	REPO_CHUNK = 65536,		/* bytes that one checksum covers */
};
#define REPO_SIZE_MAX ((uint64_t)1 << 60)	/* bytes of a disk */

enum repo_level { REPO_FULL, REPO_INCREMENTAL };

struct repo_disk {
	char name[REPO_DISK_MAX + 1];
	enum repo_level level;
	char *reason;			/* of a full; NULL for an incremental.  For people */
	char parent[REPO_NAME_MAX + 1];	/* the point below; "" for a full */
	char merged[REPO_NAME_MAX + 1];	/* prune: the parent before; "" where nothing was merged */
	char *checkpoint;		/* the daemon's id, from which the next one starts; or NULL */
	char *source;			/* what was copied from: a file, a node, a URI; or NULL */
	uint64_t size;			/* virtual, bytes */
	uint64_t read, data, zero;	/* bytes read from the server, stored, known to be zero */
	uint64_t sums_bytes;		/* of the .sums file */
	uint8_t sums_hash[SUMS_HASH];	/* SHA-256 of that file */
	uint8_t root[SUMS_HASH];	/* over the whole disk: see sums.h */
};

enum repo_state { REPO_GOOD, REPO_DAMAGED, REPO_UNFINISHED };

struct repo_point {
	char id[REPO_NAME_MAX + 1];
	enum repo_state state;
	char why[256];			/* it is not good; "" */
	/* What follows is there when the manifest could be read. */
	bool readable;
	uint64_t sequence;		/* 1, 2, ...: later points have higher ones */
	int64_t time;			/* seconds since 1970, UTC: the instant */
	int64_t finished;
	char *consistency;		/* "crash-consistent", "filesystem-consistent", "unknown" */
	char *tool, *server;		/* "merino 0.1.0", "merinod 0.1.0"; server may be NULL */
	char **arguments;		/* of the command that made it; NULL-terminated */
	uint8_t root[SUMS_HASH];	/* over its disks: repo_point_root() */
	struct repo_disk *disk;
	unsigned n;
};

struct repo {
	char *path;			/* as the user gave it */
	int dir;			/* descriptor of the directory */
	int lock, in_use;		/* descriptors; -1 */
	char id[40];			/* of the repository: a UUID */
	struct repo_point *point;	/* unreadable ones first, then by sequence */
	unsigned n;
};

enum repo_open {
	REPO_LOOK = 0,			/* no lock: list */
	REPO_READ = 1,			/* nothing is merged away meanwhile: restore, verify, serve */
	REPO_WRITE = 2,			/* the one writer; what unfinished runs left is removed */
	REPO_CREATE = 4,		/* with WRITE: make it where there is none */
	REPO_MERGE = 8,			/* with WRITE: no reader either: prune */
};

/* 0, or -errno: no repository, a newer format, -EBUSY when it is locked.  Points that
 * are damaged do not fail it. */
int repo_open(struct repo *r, const char *path, unsigned how, struct error *err);
void repo_close(struct repo *r);

/* By id; NULL: there is none. */
const struct repo_point *repo_point(const struct repo *r, const char *id);
const struct repo_disk *repo_disk(const struct repo_point *p, const char *name);
/* The last good one with that disk (NULL: any disk); or NULL. */
const struct repo_point *repo_last(const struct repo *r, const char *disk);

/* Whether S may be a point's id: letters, digits and ._+-, a letter or digit first. */
bool repo_id_valid(const char *s);
/* Whether S may be a disk's name: 1 to 64 bytes of UTF-8, no control characters. */
bool repo_disk_valid(const char *s);
/* "DISK@POINT.SUFFIX"; bytes of the disk's name that are not letters, digits or _+- (or
 * a . that is not the first) are %XX. */
void repo_file_name(char out[REPO_FILE_MAX], const char *disk, const char *point, const char *suffix);

/* --- one disk's chain of files */

struct repo_layer {
	const struct repo_point *point;
	const struct repo_disk *disk;
};

struct repo_chain {
	struct repo_layer layer[REPO_CHAIN_MAX];	/* 0: the point itself; the last: a full */
	unsigned n;
};

/* Follows the parents.  A point that verify found damaged is followed like any other (its
 * state is there to be looked at: restore and verify want what can be read).  -ENOENT, -ELOOP, -EIO with a text that names the point at
 * which the chain is broken (missing, no readable manifest, too long, sizes that do not fit). */
int repo_chain(const struct repo *r, const struct repo_point *p, const char *disk,
	       struct repo_chain *c, struct error *err);

struct node;
struct graph;

/* Opens the chain's files, read only, by the manifest's word: the names of backing files
 * in the images are compared (with that of PARENT, or of MERGED), not followed.  Images
 * with an external data file or encryption, and what is no regular file, are refused. */
int repo_chain_node(const struct repo *r, const struct repo_chain *c, struct graph *g,
		    struct node **out, struct error *err);
/* What repo_chain_node() opens, as a JSON object for --blockdev; full paths. */
struct json_object *repo_chain_blockdev(const struct repo *r, const struct repo_chain *c,
					struct error *err);
/* The backing file's name that the layer's image has in its header; "": none. */
int repo_image_backing(const struct repo *r, const struct repo_layer *l, char out[REPO_FILE_MAX],
		       struct error *err);
/* The chain's .sums files, compared with the manifests' hashes first; DISK@POINT.merged
 * instead, where that one is what the manifest means. */
int repo_chain_sums(const struct repo *r, const struct repo_chain *c, struct sums **out,
		    struct error *err);

/* The same, before they are opened: c->n descriptors for sums_open(), to lie under others. */
int repo_chain_sums_files(const struct repo *r, const struct repo_chain *c, struct sums_file *f,
			  struct error *err);

/* --- writing; all with the lock */

/* Makes POINT's mark, durably: from now on whatever has its name is removed by the next
 * writer, unless repo_commit() comes first. */
int repo_begin(struct repo *r, const char *point, struct error *err);
/* P's manifest, durably: the point exists when this returns 0.  Its files are durable
 * and have their names.  An existing manifest is replaced (prune). */
int repo_commit(struct repo *r, struct repo_point *p, struct error *err);
/* Removes what a begun POINT left, and its mark. */
void repo_abandon(struct repo *r, const char *point);
/* Removes a point: its mark is made, the manifest goes, durably, then its files and the mark. */
int repo_remove(struct repo *r, const struct repo_point *p, struct error *err);
/* fsync of the directory. */
int repo_sync(struct repo *r, struct error *err);
/* Reads all manifests again. */
int repo_rescan(struct repo *r, struct error *err);

/* The root of a point: SHA-256 over its disks', in the order of their names. */
void repo_point_root(const struct repo_point *p, uint8_t root[SUMS_HASH]);

/* For whoever builds a struct repo_point: frees what is in it. */
void repo_point_clear(struct repo_point *p);

#endif
