// SPDX-License-Identifier: BSD-3-Clause
/* disks: all disks of a machine.  One without an id is called disk0, disk1, …: its place. */
#include "vmm/disks.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/loop.h"
#include "common/uri.h"

static bool is_used(const struct disks *d, const char *id)
{
	for (unsigned i = 0; i < d->n; i++)
		if (!strcmp(d->options[i].id, id))
			return true;
	return false;
}

static int export_name(const char *text, char **out, struct error *err)
{
	struct uri u;
	int rc = uri_parse(text, &u, err);

	if (!rc && !(*out = strdup(u.export)))
		rc = error_set(err, -ENOMEM, "out of memory");
	uri_clear(&u);
	return rc;
}

static int parse_one(struct disks *d, const char *text, struct error *err)
{
	struct blk_options *o = &d->options[d->n];
	int rc = blk_parse(text, o, err);

	if (rc) {
		error_prefix(err, "--disk %s: ", text);
		return rc;
	}
	if (!o->id[0])
		snprintf(o->id, sizeof(o->id), "disk%u", d->n);
	if (is_used(d, o->id))
		rc = error_set(err, -EEXIST, "--disk %s: Duplicate ID '%s' for device", text, o->id);
	if (!rc)
		rc = export_name(o->uri[0], &d->node[d->n], err);
	d->names[d->n] = (struct control_disk){ .id = o->id, .node = d->node[d->n] };
	d->n++;
	return rc;
}

int disks_parse(struct disks *d, const struct cmdline_list *l, struct error *err)
{
	int rc = 0;

	for (unsigned i = 0; i < l->n && !rc; i++)
		rc = parse_one(d, l->text[i], err);
	return rc;
}

int disks_add(struct disks *d, struct machine *m, struct error *err)
{
	int rc = 0;

	for (; d->n_added < d->n && !rc; d->n_added += !rc)
		rc = blk_add(m, &d->options[d->n_added], &d->blk[d->n_added], err);
	return rc;
}

enum { LOOKS = 5 };			/* a server that is busy now may answer then */

struct look {
	struct disk *disk;
	bool seen;
};

static void look(void *arg)
{
	struct look *l = arg;

	l->seen = disk_look(l->disk);
}

void disks_look(struct disks *d, const bool *stop)
{
	for (unsigned i = 0; i < d->n_added; i++) {
		struct look l = { .disk = blk_disk(d->blk[i]) };

		for (unsigned n = 0; n < LOOKS && !l.seen && !*stop; n++)
			loop_work(look, &l);
	}
}

void disks_end(struct disks *d)
{
	for (unsigned i = 0; i < d->n_added; i++)
		disk_cancel(blk_disk(d->blk[i]));
	for (unsigned i = 0; i < d->n_added; i++)
		blk_remove(d->blk[i]);
	for (unsigned i = 0; i < d->n; i++) {
		blk_options_clear(&d->options[i]);
		free(d->node[i]);
	}
	*d = (struct disks){ 0 };
}
