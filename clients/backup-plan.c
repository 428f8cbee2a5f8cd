// SPDX-License-Identifier: BSD-3-Clause
/* backup-plan: full or incremental, on what, and why.
 *
 * An incremental rests on the very point whose checkpoint the daemon counts from: what
 * changed since an older one laid over a newer one would be wrong where the disk was
 * rolled back in between.  Whatever is not certain makes a full.
 */
#include <errno.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clients/backup.h"

int backup_add_disk(struct backup *b, const char *name, struct backup_disk **out, struct error *err)
{
	struct backup_disk *more;

	if (!repo_disk_valid(name))
		return error_set(err, -EINVAL, "'%s' cannot be a disk's name: 1 to %d bytes of UTF-8; give "
				 "NAME=... for another one", name, REPO_DISK_MAX);
	for (unsigned i = 0; i < b->n; i++)
		if (!strcmp(b->disk[i].d.name, name))
			return error_set(err, -EEXIST, "two disks are called '%s'; give NAME=... for one of them",
					 name);
	if (b->n == REPO_DISKS)
		return error_set(err, -E2BIG, "more than %d disks", REPO_DISKS);
	more = realloc(b->disk, (b->n + 1) * sizeof(*more));
	if (!more)
		return error_errno(err, -ENOMEM, "%s", name);
	b->disk = more;
	*out = &more[b->n++];
	**out = (struct backup_disk){ 0 };
	strcpy((*out)->d.name, name);
	return 0;
}

/* The chain of DISK at P is as it was made, as far as that can be seen without reading
 * all of it; and there is room for one more on it. */
static int check_chain(struct backup *b, const struct repo_point *p, const char *disk, uint64_t size,
		       struct repo_chain *c, struct error *err)
{
	struct json_object *o;
	struct sums *s;
	int rc = repo_chain(&b->repo, p, disk, c, err);

	for (unsigned i = 0; rc == 0 && i < c->n; i++)
		if (c->layer[i].point->state != REPO_GOOD)
			rc = error_set(err, -EUCLEAN, "the restore point %s is damaged: %s",
				       c->layer[i].point->id, c->layer[i].point->why);
	if (rc == 0 && c->n == REPO_CHAIN_MAX)
		rc = error_set(err, -ELOOP, "%u restore points lie over one another, and more may not; merino "
			       "prune merges them", c->n);
	if (rc == 0 && c->layer[0].disk->size > size)
		rc = error_set(err, -ERANGE, "the disk has become smaller");
	if (rc < 0)
		return rc;
	o = repo_chain_blockdev(&b->repo, c, err);
	if (!o)
		return err->code;
	json_object_put(o);
	rc = repo_chain_sums(&b->repo, c, &s, err);
	if (rc == 0)
		sums_close(s);
	return rc;
}

const struct repo_point *backup_parent(struct backup *b, const char *disk, uint64_t size,
				       bool (*known)(void *arg, const char *checkpoint), void *arg,
				       char *why, size_t n)
{
	const struct repo_point *p = repo_last(&b->repo, disk), *newest = NULL;
	struct error err = ERROR_INIT;
	struct repo_chain c;

	for (unsigned i = b->repo.n; i > 0 && !newest; i--)
		if (b->repo.point[i - 1].readable && repo_disk(&b->repo.point[i - 1], disk))
			newest = &b->repo.point[i - 1];
	if (b->o->full)
		snprintf(why, n, "asked for");
	else if (!newest)
		snprintf(why, n, "the first restore point of this disk");
	else if (!p)
		snprintf(why, n, "the restore point %s is damaged: %s", newest->id, newest->why);
	if (b->o->full || !p)
		return NULL;
	if (check_chain(b, p, disk, size, &c, &err) < 0) {
		snprintf(why, n, "%s", err.text);
		return NULL;
	}
	for (unsigned i = 0; i < c.n; i++) {
		const char *checkpoint = c.layer[i].disk->checkpoint;

		if (!known || (checkpoint && known(arg, checkpoint)))
			return c.layer[i].point;
	}
	snprintf(why, n, "%s", p->n && repo_disk(p, disk)->checkpoint ?
		 "the daemon no longer has the checkpoint of a restore point" :
		 "the last restore point was made without a checkpoint");
	return NULL;
}

int backup_rest_on(struct backup *b, struct backup_disk *d, const struct repo_point *p,
		   const char *why, struct error *err)
{
	if (p) {
		d->d.level = REPO_INCREMENTAL;
		strcpy(d->d.parent, p->id);
		return check_chain(b, p, d->d.name, d->d.size, &d->chain, err);
	}
	d->d.level = REPO_FULL;
	d->d.reason = strdup(why);
	return d->d.reason ? 0 : error_errno(err, -ENOMEM, "%s", d->d.name);
}
