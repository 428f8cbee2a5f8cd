// SPDX-License-Identifier: BSD-3-Clause
/* run-disks: what merino run's disks are.
 *
 *	FILE|URI[,id=NAME][,format=raw|qcow2][,read-only=on]
 *
 * A guest can write anything into a raw disk, a qcow2 header too; the next start must not
 * believe it.  So a file is qcow2 by its name or because the user says so, never because
 * of what it contains.
 *
 * Two merinods may serve one raw file: an NBD export shares its disk with other writers, as
 * QEMU's does.  Two machines may not; so each holds a lock of our own on its files, in a byte
 * that QEMU's locks (100 to 107, 200 to 207) do not use.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clients/run.h"
#include "common/options.h"
#include "common/uri.h"

enum { LOCK_BYTE = 300 };

static bool ends_with(const char *s, const char *end)
{
	size_t n = strlen(s), m = strlen(end);

	return n >= m && !strcmp(s + n - m, end);
}

static int find_format(struct run_disk *d, struct error *err)
{
	char magic[4] = "";
	int fd;

	if (d->format)
		return 0;
	d->format = ends_with(d->what, ".qcow2") ? "qcow2" : "raw";
	if (ends_with(d->what, ".qcow2") || ends_with(d->what, ".raw"))
		return 0;
	fd = open(d->what, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return error_errno(err, -errno, "%s", d->what);
	if (read(fd, magic, 4) == 4 && !memcmp(magic, "QFI\xfb", 4)) {
		close(fd);
		return error_set(err, -EINVAL, "%s: looks like qcow2: say format=qcow2, or format=raw", d->what);
	}
	close(fd);
	return 0;
}

static int take_option(struct run_disk *d, const char *key, const char *value, struct error *err)
{
	if (!strcmp(key, "id")) {
		if (!id_wellformed(value) || strlen(value) >= sizeof(d->id))
			return error_set(err, -EINVAL, "%s: Invalid ID '%s'", d->what, value);
		strcpy(d->id, value);
		return 0;
	}
	if (!strcmp(key, "read-only") && (!strcmp(value, "on") || !strcmp(value, "off"))) {
		d->read_only = !strcmp(value, "on");
		return 0;
	}
	if (!strcmp(key, "format") && !d->uri && (!strcmp(value, "raw") || !strcmp(value, "qcow2"))) {
		d->format = !strcmp(value, "raw") ? "raw" : "qcow2";
		return 0;
	}
	return error_set(err, -EINVAL, "%s: a disk has no option '%s=%s'", d->what, key, value);
}

static int take_options(struct run_disk *d, char *text, struct error *err)
{
	int rc = 0;

	for (char *word = strtok(text, ","); word && !rc; word = strtok(NULL, ",")) {
		char *value = strchr(word, '=');

		if (value)
			*value++ = 0;
		rc = take_option(d, word, value ? value : "", err);
	}
	return rc;
}

static int is_new(const struct run *r, const struct run_disk *d, struct error *err)
{
	for (unsigned i = 0; i < r->n_disks; i++) {
		const struct run_disk *o = &r->disk[i];

		if (o == d)
			continue;
		if (!strcmp(o->id, d->id))
			return error_set(err, -EEXIST, "%s: Duplicate ID '%s' for device", d->what, d->id);
		if (!d->uri && !strcmp(o->what, d->what) && !(o->read_only && d->read_only))
			return error_set(err, -EEXIST, "%s: named twice: a file is one disk, or all its disks "
					 "are read-only=on", d->what);
	}
	return 0;
}

static int lock(struct run_disk *d, struct error *err)
{
	struct flock l = { .l_type = d->read_only ? F_RDLCK : F_WRLCK, .l_start = LOCK_BYTE, .l_len = 1 };

	d->lock = open(d->what, (d->read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NONBLOCK);
	if (d->lock < 0)
		return error_errno(err, -errno, "%s", d->what);
	if (fcntl(d->lock, F_OFD_SETLK, &l) < 0 && (errno == EAGAIN || errno == EACCES))
		return error_set(err, -EBUSY, "%s: another machine runs with this disk", d->what);
	return 0;			/* or the file system has no locks */
}

int run_disks_lock(struct run *r, struct error *err)
{
	int rc = 0;

	for (unsigned i = 0; i < r->n_disks && !rc; i++)
		if (!r->disk[i].uri)
			rc = lock(&r->disk[i], err);
	return rc;
}

int run_disk_parse(struct run *r, const char *text, struct error *err)
{
	struct run_disk *d = &r->disk[r->n_disks];
	char *copy, *comma;
	int rc = 0;

	if (r->n_disks == RUN_DISKS_MAX)
		return error_set(err, -E2BIG, "a machine has %u disks at most", RUN_DISKS_MAX);
	*d = (struct run_disk){ .text = text, .uri = uri_is_nbd(text), .lock = -1 };
	copy = strdup(text);
	if (!copy)
		return error_set(err, -ENOMEM, "Out of memory");
	comma = strchr(copy, ',');
	if (comma)
		*comma = 0;
	d->what = d->uri ? strdup(copy) : realpath(copy, NULL);
	if (!d->what) {
		rc = error_errno(err, -errno, "%s", copy);
		free(copy);
		return rc;
	}
	snprintf(d->id, sizeof(d->id), "vd%c", 'a' + (int)r->n_disks);
	r->n_disks++;
	rc = take_options(d, comma ? comma + 1 : copy + strlen(copy), err);
	free(copy);
	if (!rc && !d->uri)
		rc = find_format(d, err);
	return rc ? rc : is_new(r, d, err);
}

void run_disks_clear(struct run *r)
{
	for (unsigned i = 0; i < r->n_disks; i++) {
		free(r->disk[i].what);
		if (r->disk[i].lock >= 0)
			close(r->disk[i].lock);
	}
	r->n_disks = 0;
}
