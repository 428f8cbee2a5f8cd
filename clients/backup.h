/* SPDX-License-Identifier: BSD-3-Clause */
/* backup: what the command line of `merino backup` says, and what its parts share. */
#ifndef MERINO_BACKUP_H
#define MERINO_BACKUP_H

#include <stdbool.h>
#include <stdint.h>

#include "clients/progress.h"
#include "clients/pull.h"
#include "clients/repo.h"
#include "common/error.h"

struct target;

struct backup_options {
	const char *to;			/* the repository */
	const char *socket;		/* merinod's monitor; NULL */
	const char *name;		/* of the point; NULL: the time */
	const char *bitmap;		/* NBD URIs: what changed since the last point */
	const char *tls_certificates, *tls_psk_file, *tls_username;	/* for the daemon's URIs; NULL */
	bool quiesce;
	const char *agent;		/* the guest agent's socket; NULL: beside SOCKET */
	const char *hook_before, *hook_after;	/* commands; NULL */
	unsigned quiesce_timeout;	/* seconds */
	const char *merinod;		/* the program; NULL: beside this one, or in PATH */
	bool full, json, quiet;
	char compress;			/* see target_open() */
	uint64_t limit;			/* bytes a second; 0: none */
	unsigned connections;		/* 0: as many as help */
	unsigned requests;		/* in flight, of all connections */
	unsigned timeout;		/* seconds without an answer, or without a connection */
	enum progress_mode progress;
	int progress_fd;
	char **argv;			/* the whole command line, for the manifest */
	char **what;			/* disks, URIs or images */
	unsigned n_what;
};

enum pull_go backup_parse(struct backup_options *o, int argc, char **argv);

/* Whether WHAT is a URI, with a disk's name before it or not. */
bool backup_is_uri(const char *what);

/* One disk of a run: where it is read from, and what becomes of it. */
struct backup_disk {
	struct repo_disk d;		/* for the manifest; source, checkpoint: set by the source */
	char *uri;
	char *bitmap;			/* what changed since the parent; NULL: a full */
	struct repo_chain chain;	/* below; n = 0: a full */
};

struct backup;

/* Where disks come from: URIs as given, or a checkpoint of merinod's. */
struct backup_source {
	/* Fills b->disk (name, size, uri, bitmap, source, checkpoint, and the level with its
	 * reason or parent), b->time, b->consistency, b->server. */
	int (*open)(struct backup *b, struct error *err);
	/* Called about once a second while it copies; NULL. */
	int (*keep)(struct backup *b, struct error *err);
	/* SUCCESS: the point exists.  Called once if open was, with what is left of it.  NULL. */
	int (*end)(struct backup *b, bool success, struct error *err);
};

extern const struct backup_source backup_uris, backup_checkpoint, backup_images;

struct backup {
	const struct backup_options *o;
	const struct backup_source *source;
	struct repo repo;
	char point[REPO_NAME_MAX + 1];
	bool begun;			/* the point has its mark */
	bool rotten;			/* it failed because a parent is; that was marked */
	bool grown;			/* it failed because a disk grew, and its bitmap does not know */
	bool doubt_growth;		/* so whatever has grown is a full */
	int64_t time;			/* the instant */
	const char *consistency;
	bool quiesced;			/* the guest's file systems were at rest at the instant */
	char *server;			/* "merinod 0.1.0", or NULL */
	struct backup_disk *disk;
	unsigned n;
	struct progress progress;
	uint64_t total, done, copied;	/* bytes; of all disks */
};

/* backup-plan.c: */

/* One more disk; -EEXIST when the name is taken, -EINVAL when it cannot be one. */
int backup_add_disk(struct backup *b, const char *name, struct backup_disk **out, struct error *err);
/* b->disk is empty again. */
void backup_forget_disks(struct backup *b);
/* The point on which D, which has SIZE bytes, may rest: the last good one, or an earlier
 * one of which KNOWN (NULL: all) says that its checkpoint is still there.  Each that
 * is named has a chain that can be read.  NULL with the reason in WHY. */
const struct repo_point *backup_parent(struct backup *b, const char *disk, uint64_t size,
				       bool (*known)(void *arg, const char *checkpoint), void *arg,
				       char *why, size_t n);
/* D is an incremental over P, or (P NULL) a full because of WHY. */
int backup_rest_on(struct backup *b, struct backup_disk *d, const struct repo_point *p,
		   const char *why, struct error *err);

/* Copies all of disk D into T. */
int backup_copy(struct backup *b, struct backup_disk *d, struct target *t, struct error *err);

/* The verbs. */
int backup_main(int argc, char **argv);
int list_main(int argc, char **argv);

#endif
