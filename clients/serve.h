/* SPDX-License-Identifier: BSD-3-Clause */
/* serve: a restore point is read, or a machine is booted from it, over NBD. */
#ifndef MERINO_SERVE_H
#define MERINO_SERVE_H

#include <stdbool.h>
#include <sys/types.h>

#include "clients/repo.h"
#include "clients/verb.h"

struct serve {
	struct verb_options v;
	const char *where, *disk;
	const char *socket;		/* a path; NULL: a private one, or PORT */
	const char *bind;		/* the address with PORT */
	const char *run;		/* a shell command; NULL: until a signal */
	int port;			/* -1: none; 0: any that is free */
	bool writable;
	struct repo repo;
	const struct repo_point *point;
	char *dir;			/* private; removed at the end */
	char *overlays;			/* the same, for what is written; NULL */
	char *listen;			/* the socket's path; NULL with a port */
	pid_t daemon;			/* 0: none */
};

/* Makes the private directories, starts a merinod for the disks and waits until it serves. */
int serve_start(struct serve *o, struct error *err);
/* The URI of a disk; malloc'd. */
int serve_uri(const struct serve *o, const char *disk, char **uri, struct error *err);
/* Ends the daemon and removes everything; more than once is fine. */
void serve_stop(struct serve *o);

/* Whether the disk is one of those that are asked for. */
bool serve_wanted(const struct serve *o, const struct repo_disk *d);

int serve_main(int argc, char **argv);

#endif
