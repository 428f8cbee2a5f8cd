// SPDX-License-Identifier: BSD-3-Clause
/* qcow2-snapshot: the table of internal snapshots; one of them as the disk.
 *
 * Specification: "Snapshots".  We make and delete none, but keep them: what they
 * share with the active state has no COPIED flag and is not written in place
 * (qcow2-io.c for data, qcow2-table.c for L2 tables).
 *
 *	 0  offset of its L1 table	16  date, seconds	36  length of extra data
 *	 8  entries of its L1 table	20  and nanoseconds	40  extra data: size of the VM
 *	12  length of the ID		24  guest clock, ns	    state, of the disk, icount
 *	14  length of the name		32  size of the VM state then ID, name, pad to 8
 *
 * The table comes from a stranger: entries, extra data and the table as a whole are
 * bounded, and so is each L1 table, before anybody follows it.
 */
#include "format/qcow2-int.h"

#include <errno.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

#include "common/options.h"

#define FIXED_BYTES 40u

static void parse_fixed(const struct qcow2 *s, struct qcow2_snapshot *sn, const uint8_t *p)
{
	sn->l1_offset = get_be64(p);
	sn->l1_size = get_be32(p + 8);
	sn->date_sec = get_be32(p + 16);
	sn->date_nsec = get_be32(p + 20);
	sn->vm_clock_ns = get_be64(p + 24);
	sn->vm_state_size = get_be32(p + 32);
	sn->disk_size = s->h.size;
}

static void parse_extra(struct qcow2_snapshot *sn, const uint8_t *p, uint32_t len)
{
	if (len >= 8)
		sn->vm_state_size = get_be64(p);
	if (len >= 16)
		sn->disk_size = get_be64(p + 8);
	sn->has_icount = len >= 24 && get_be64(p + 16) != UINT64_MAX;
	if (sn->has_icount)
		sn->icount = get_be64(p + 16);
}

/* The entry at *AT, which then is behind it. */
static int load_one(struct qcow2 *s, struct qcow2_snapshot *sn, uint64_t *at, struct error *err)
{
	uint8_t fixed[FIXED_BYTES], *rest;
	uint32_t extra, id, name;
	uint64_t len;
	int rc = qcow2_file_read(s, fixed, *at, sizeof(fixed));

	if (rc)
		return error_errno(err, rc, "Failed to read snapshot table");
	parse_fixed(s, sn, fixed);
	id = get_be16(fixed + 12);
	name = get_be16(fixed + 14);
	extra = get_be32(fixed + 36);
	if (extra > QCOW2_SNAPSHOT_EXTRA_MAX)
		return error_set(err, -EINVAL, "Too much extra metadata in snapshot table entry");
	len = (uint64_t)extra + id + name;
	if (*at + FIXED_BYTES + len - s->h.snapshots_offset > QCOW2_SNAPSHOT_TABLE_MAX)
		return error_set(err, -EINVAL, "Snapshot table is too big");
	if (!checked_range(*at, FIXED_BYTES + len, s->file->size))
		return error_set(err, -EINVAL, "Snapshot table ends behind the end of the file");
	rest = malloc(len + 1);
	rc = rest ? qcow2_file_read(s, rest, *at + FIXED_BYTES, len) : -ENOMEM;
	if (!rc) {
		parse_extra(sn, rest, extra);
		sn->id = strndup((char *)rest + extra, id);
		sn->name = strndup((char *)rest + extra + id, name);
		rc = sn->id && sn->name ? 0 : -ENOMEM;
	}
	free(rest);
	*at = align_up(*at + FIXED_BYTES + len, 8);
	return rc ? error_errno(err, rc, "Failed to read snapshot table") : 0;
}

int qcow2_snapshots_load(struct qcow2 *s, struct error *err)
{
	uint64_t at = s->h.snapshots_offset;
	int rc = 0;

	if (!s->h.nb_snapshots)
		return 0;
	s->snapshots = calloc(s->h.nb_snapshots, sizeof(*s->snapshots));
	if (!s->snapshots)
		return error_set(err, -ENOMEM, "Out of memory");
	for (uint32_t i = 0; i < s->h.nb_snapshots && !rc; i++)
		rc = load_one(s, &s->snapshots[i], &at, err);
	s->snapshots_bytes = at - s->h.snapshots_offset;
	return rc;
}

void qcow2_snapshots_free(struct qcow2 *s)
{
	for (uint32_t i = 0; s->snapshots && i < s->h.nb_snapshots; i++) {
		free(s->snapshots[i].id);
		free(s->snapshots[i].name);
	}
	free(s->snapshots);
}

int qcow2_snapshot_check_l1(const struct qcow2 *s, const struct qcow2_snapshot *sn, struct error *err)
{
	if (sn->l1_size > QCOW2_L1_BYTES_MAX / 8)
		return error_set(err, -EFBIG, "Snapshot L1 table too large");
	if (qcow2_in_cluster(s, sn->l1_offset) || (sn->l1_size && !sn->l1_offset) ||
	    !checked_range(sn->l1_offset, sn->l1_size * 8ull, s->file->size))
		return error_set(err, -EINVAL, "Snapshot L1 table offset invalid");
	return 0;
}

int qcow2_snapshots_check(const struct qcow2 *s, struct error *err)
{
	int rc = 0;

	for (uint32_t i = 0; i < s->h.nb_snapshots && !rc; i++)
		rc = qcow2_snapshot_check_l1(s, &s->snapshots[i], err);
	return rc;
}

/* By ID first, then by name, as qemu-nbd -l does. */
static const struct qcow2_snapshot *find(const struct qcow2 *s, const char *which)
{
	for (uint32_t i = 0; i < s->h.nb_snapshots; i++)
		if (!strcmp(s->snapshots[i].id, which))
			return &s->snapshots[i];
	for (uint32_t i = 0; i < s->h.nb_snapshots; i++)
		if (!strcmp(s->snapshots[i].name, which))
			return &s->snapshots[i];
	return NULL;
}

int qcow2_snapshot_use(struct qcow2 *s, const char *which, struct error *err)
{
	const struct qcow2_snapshot *sn = find(s, which);
	uint64_t need;
	int rc;

	if (!sn)
		return error_set(err, -ENOENT, "Can't find snapshot '%s' in '%s'", which, qcow2_name(s));
	rc = qcow2_snapshot_check_l1(s, sn, err);
	if (rc)
		return rc;
	if (sn->disk_size > INT64_MAX)
		return error_set(err, -EFBIG, "The disk of snapshot '%s' is too large", which);
	need = DIV_ROUND_UP(sn->disk_size, 1ull << s->l1_shift);
	if (sn->l1_size < need)
		return error_set(err, -EINVAL, "The L1 table of snapshot '%s' is too small", which);
	s->h.size = sn->disk_size;
	s->h.l1_offset = sn->l1_offset;
	s->h.l1_size = sn->l1_size;
	return 0;
}

static struct json_object *text(const char *p)
{
	return json_object_new_string(utf8_valid((const uint8_t *)p, strlen(p)) ? p : "?");
}

/* QEMU's SnapshotInfo. */
static struct json_object *describe(const struct qcow2_snapshot *sn)
{
	struct json_object *o = json_object_new_object();

	json_object_object_add(o, "id", text(sn->id));
	json_object_object_add(o, "name", text(sn->name));
	json_object_object_add(o, "vm-state-size", json_object_new_int64(sn->vm_state_size & INT64_MAX));
	json_object_object_add(o, "date-sec", json_object_new_int64(sn->date_sec));
	json_object_object_add(o, "date-nsec", json_object_new_int64(sn->date_nsec));
	json_object_object_add(o, "vm-clock-sec", json_object_new_int64(sn->vm_clock_ns / 1000000000));
	json_object_object_add(o, "vm-clock-nsec", json_object_new_int64(sn->vm_clock_ns % 1000000000));
	if (sn->has_icount)
		json_object_object_add(o, "icount", json_object_new_int64(sn->icount & INT64_MAX));
	return o;
}

struct json_object *qcow2_snapshots_info(const struct qcow2 *s)
{
	struct json_object *list = json_object_new_array();

	for (uint32_t i = 0; i < s->h.nb_snapshots; i++)
		json_object_array_add(list, describe(&s->snapshots[i]));
	return list;
}
