/* SPDX-License-Identifier: BSD-3-Clause */
/* backup-checkpoint: disks of a merinod, by a checkpoint; also used by backup-images. */
#ifndef MERINO_BACKUP_CHECKPOINT_H
#define MERINO_BACKUP_CHECKPOINT_H

#include "clients/backup.h"
#include "clients/qmp-client.h"

/* A disk that is asked for: one of node and export. */
struct wanted {
	char name[REPO_DISK_MAX + 1];
	char *node, *export;
	char *source;			/* for the manifest; NULL */
};

struct checkpoint_run {
	struct qmp *q;
	const char *socket;
	struct wanted *want;
	unsigned n;
	char id[REPO_NAME_MAX + 40];	/* of the checkpoint */
	bool begun;
	uint64_t renewed;		/* when, ns */
	struct json_object *known;	/* what query-checkpoints said */
};

/* A disk more. */
int checkpoint_want(struct checkpoint_run *c, const char *name, size_t len, const char *node,
		    const char *export, const char *source, struct error *err);
/* c->q is connected and c->want filled: the instant, and b->disk. */
int checkpoint_open(struct backup *b, struct checkpoint_run *c, struct error *err);
int checkpoint_keep(struct backup *b, struct checkpoint_run *c, struct error *err);
int checkpoint_close(struct backup *b, struct checkpoint_run *c, bool success, struct error *err);
/* Frees what is in C. */
void checkpoint_run_clear(struct checkpoint_run *c);

/* backup-tls.c: the one of URIS that is reached best, with the command line's credentials where
 * it is one of TLS; malloc'd. */
int backup_pick_uri(const struct backup_options *o, struct json_object *uris, char **out, struct error *err);

#endif
