/* SPDX-License-Identifier: BSD-3-Clause */
/* run: merino run's options, and the programs that it starts. */
#ifndef MERINO_RUN_H
#define MERINO_RUN_H

#include <sys/types.h>

#include "clients/vm.h"

#define RUN_DISKS_MAX 26u
#define RUN_ARGS_MAX 160u

struct run_disk {
	const char *text;		/* FILE or URI, and options */
	char *what;			/* the file (absolute) or the URI; owned */
	char id[65];
	const char *format;		/* files: "raw" or "qcow2" */
	bool uri, read_only;
	int lock;			/* of a file, while the machine runs; else -1 */
};

struct run {
	const char *name, *memory, *cpus, *kernel, *initrd, *append, *bios, *socket, *base;
	const char *net[8];
	unsigned n_net;
	struct run_disk disk[RUN_DISKS_MAX];
	unsigned n_disks;
	bool detach, paused;
	struct vm vm;
	pid_t merinod, vmm;		/* 0: none */
};

/* Reads a disk's text, and looks what it is. */
int run_disk_parse(struct run *r, const char *text, struct error *err);
/* No other machine of `merino run` writes to the files that are ours, or reads what we write. */
int run_disks_lock(struct run *r, struct error *err);
void run_disks_clear(struct run *r);

/* Starts a merinod for the disks that are files, and waits until it serves. */
int run_start_merinod(struct run *r, struct error *err);
/* The same without waiting, after one has died. */
int run_restart_merinod(struct run *r, struct error *err);
int run_start_vmm(struct run *r, struct error *err);

#endif
