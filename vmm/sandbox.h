/* SPDX-License-Identifier: BSD-3-Clause */
/* sandbox: what the process gives up before the guest runs.
 *
 *	options ─▶ sandbox_begin ─▶ threads, which inherit; sockets, devices, disks
 *	        ─▶ sandbox_finish ─▶ the guest runs
 *
 * First what can be given up before anything is open: descriptors that were left to us,
 * core files, programs with other privileges, and all files but those that the options
 * name (Landlock).  At the end, for all threads: root (--user), and every system call
 * that a machine under way does not make (seccomp); nothing is opened for writing any
 * more, nothing is listened on that was not before, and without disks over TCP or
 * networking in this process there is no socket but unix ones.
 */
#ifndef MERINO_VMM_SANDBOX_H
#define MERINO_VMM_SANDBOX_H

#include <stdbool.h>

#include "common/error.h"

struct cmdline;
struct disks;

struct sandbox {
	bool off;			/* --sandbox off */
	bool trap;			/* --sandbox trap: says which call it was */
	bool core;			/* --core */
	const char *user;		/* --user; NULL: stay */
};

/* What the guest's devices need of system calls. */
struct sandbox_needs {
	bool inet;			/* sockets to other hosts */
	bool listens;			/* libslirp, which makes sockets for the guest */
	bool trap;
};

/* Before the first thread and before anything is opened; the disks' texts were read. */
int sandbox_begin(const struct cmdline *c, const struct disks *d, struct error *err);
/* When everything is open, before the vCPUs run. */
int sandbox_finish(const struct cmdline *c, struct error *err);

/* sandbox-paths.c: what the options name, for sandbox_allow_all(); and what they need. */
int sandbox_look(const struct cmdline *c, const struct disks *d, struct sandbox_needs *n,
		 struct error *err);

/* sandbox-calls.c: the filter, for all threads. */
int sandbox_calls(const struct sandbox_needs *n, struct error *err);

#endif
