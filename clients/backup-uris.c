// SPDX-License-Identifier: BSD-3-Clause
/* backup-uris: disks that any NBD server shows.
 *
 * Nobody holds the instant: a disk that changes while it is copied is no point in time,
 * and the manifest says so.  With --bitmap the user says that it names all that has changed
 * since the last point.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "clients/backup.h"
#include "clients/pull-source.h"
#include "common/uri.h"

/* The disk's name: what stands before the URI, or the export's. */
static int disk_name(const char *what, const char **uri, char name[REPO_DISK_MAX + 1], struct error *err)
{
	const char *eq = uri_is_nbd(what) ? NULL : strchr(what, '=');
	struct uri u;
	int rc;

	*uri = eq ? eq + 1 : what;
	rc = uri_parse(*uri, &u, err);
	if (rc < 0)
		return rc;
	if (eq)
		rc = snprintf(name, REPO_DISK_MAX + 1, "%.*s", (int)(eq - what), what);
	else
		rc = snprintf(name, REPO_DISK_MAX + 1, "%s", *u.export ? u.export : "disk");
	uri_clear(&u);
	return rc > REPO_DISK_MAX ? error_set(err, -EINVAL, "%s: the disk's name is longer than %d bytes",
					      what, REPO_DISK_MAX) : 0;
}

static int add(struct backup *b, const char *what, struct error *err)
{
	const struct repo_point *parent = NULL;
	char name[REPO_DISK_MAX + 1], why[512] = "given as a URI, without --bitmap";
	struct backup_disk *d;
	struct source s;
	const char *uri;
	int rc = disk_name(what, &uri, name, err);

	if (rc == 0)
		rc = backup_add_disk(b, name, &d, err);
	if (rc < 0)
		return rc;
	rc = source_open(&s, uri, b->o->bitmap, err);
	d->d.size = s.size;
	source_close(&s);
	if (rc < 0)
		return rc;
	d->uri = strdup(uri);
	d->d.source = strdup(uri);
	if (!d->uri || !d->d.source)
		return error_errno(err, -ENOMEM, "%s", name);
	if (b->o->bitmap || b->o->full)
		parent = backup_parent(b, name, d->d.size, NULL, NULL, why, sizeof(why));
	d->bitmap = parent ? strdup(b->o->bitmap) : NULL;
	return backup_rest_on(b, d, parent, why, err);
}

static int open_uris(struct backup *b, struct error *err)
{
	int rc = 0;

	b->time = time(NULL);
	b->consistency = "unknown";
	for (unsigned i = 0; i < b->o->n_what && rc == 0; i++)
		rc = add(b, b->o->what[i], err);
	return rc;
}

const struct backup_source backup_uris = { .open = open_uris };
