// SPDX-License-Identifier: BSD-3-Clause
/* qcow2-relink: the header names another backing file; no data is touched.
 *
 * A power loss leaves the old name or the new one.  The new one is written where neither
 * the old one nor an extension is, before the fields that point to it change, which are
 * in one sector (qcow2_header_point()).  The format stays recorded when
 * the name goes: without a name it means nothing.
 */
#include "format/qcow2-int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Where the extensions end, as qcow2-header-write.c will write them. */
static uint64_t extensions_end(const struct qcow2_header *h)
{
	uint64_t at = h->length;

	for (unsigned i = 0; i < h->n_ext; i++)
		at += 8 + align_up(h->ext[i].len, 8);
	return at + 8;
}

/* A place for LEN bytes, in sectors that hold nothing else; 0: none. */
static uint64_t find_room(const struct qcow2 *s, uint64_t len)
{
	const struct qcow2_header *h = &s->h;
	uint64_t old = h->backing_name ? h->backing_offset : s->cluster_size;
	uint64_t old_end = h->backing_name ? align_up(old + strlen(h->backing_name), 512) : 0;
	uint64_t at = align_up(max_u64(extensions_end(h), 512), 512);

	if (at + len <= (old & ~511ull))
		return at;
	at = max_u64(at, old_end);
	return at + len <= s->cluster_size ? at : 0;
}

/* The extension's format has to be right before there is a name. */
static int set_format(struct qcow2 *s, const char *format, struct error *err)
{
	const struct qcow2_ext *e = qcow2_ext_find(&s->h, QCOW2_EXT_BACKING_FORMAT);
	int rc;

	if (e && e->len == strlen(format) && !memcmp(e->data, format, e->len))
		return 0;
	if (s->h.backing_name)
		return error_set(err, -ENOTSUP, "The format of the backing file of '%s' cannot change", qcow2_name(s));
	rc = qcow2_ext_put(&s->h, QCOW2_EXT_BACKING_FORMAT, format, strlen(format));
	if (!rc)
		rc = qcow2_header_write(s);
	return rc ? error_errno(err, rc, "Could not update the header of '%s'", qcow2_name(s)) : 0;
}

int qcow2_relink(struct node *n, const char *name, const char *format, struct error *err)
{
	struct qcow2 *s = qcow2_of(n);
	struct qcow2_header *h = &s->h;
	char *copy = name ? strdup(name) : NULL;
	uint64_t room = name ? find_room(s, strlen(name)) : 0;
	int rc = name && !copy ? -ENOMEM : 0;

	if (!rc && name && (!*name || strlen(name) > QCOW2_BACKING_NAME_MAX || !room))
		rc = error_set(err, -ENOSPC, "There is no room in the header of '%s' for the name of a backing file",
			       qcow2_name(s));
	if (!rc && name)
		rc = set_format(s, format, err);
	if (!rc)
		rc = qcow2_flush_all(s);
	if (rc) {
		free(copy);
		return rc;
	}
	rc = qcow2_header_point(s, room, name);
	if (rc) {
		free(copy);
		s->flush.failed = true;		/* nobody knows which header the file has */
		return error_errno(err, rc, "Could not update the header of '%s'", qcow2_name(s));
	}
	free(h->backing_name);
	h->backing_name = copy;
	h->backing_offset = room;
	return 0;
}
