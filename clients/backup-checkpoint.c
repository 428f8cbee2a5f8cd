// SPDX-License-Identifier: BSD-3-Clause
/* backup-checkpoint: one instant of several disks of a merinod.
 *
 * Our checkpoints are called merino.REPOSITORY.POINT.RANDOM: nobody else deletes them.
 * The lock file has the name of the one that was begun last, and its own inode: what is
 * still pending under that name was left by a run that was killed, for we have the lock.
 * A copy of the repository, which has the same id, does not end ours.
 *
 *	query-checkpoints     which points an incremental can start from
 *	checkpoint-begin      with a "since" for each disk that has such a point
 *	... copy, commit ...
 *	checkpoint-end        success: the point exists
 *	checkpoint-delete     of those that no point of ours needs any more
 *
 * When the point exists and the daemon could not be told, it undoes the checkpoint, and the
 * next incremental rests on the point before: right, only longer.
 */
#include "clients/backup-checkpoint.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "clients/quiesce.h"
#include "common/log.h"

enum { NOTE = 192 };			/* bytes of the lock file */
enum { LEASE_S = 300, RENEW_NS = 1000000000, CONNECT_MS = 2000, QUIESCE_S = 30 };

/* --- what the daemon says */

static const char *text_of(struct json_object *o, const char *key)
{
	struct json_object *v;

	if (!json_object_is_type(o, json_type_object) || !json_object_object_get_ex(o, key, &v) ||
	    !json_object_is_type(v, json_type_string))
		return NULL;
	return json_object_get_string(v);
}

static size_t length_of(struct json_object *list)
{
	return json_object_is_type(list, json_type_array) ? json_object_array_length(list) : 0;
}

static struct json_object *member_of(struct json_object *o, const char *key)
{
	struct json_object *v;

	return json_object_is_type(o, json_type_object) && json_object_object_get_ex(o, key, &v) ? v : NULL;
}

static bool is_ours(const struct backup *b, const char *id)
{
	char prefix[32];

	snprintf(prefix, sizeof(prefix), "merino.%.8s.", b->repo.id);
	return strncmp(id, prefix, strlen(prefix)) == 0;
}

/* For backup_parent(): the checkpoint is there, and counts. */
static bool is_known(void *arg, const char *checkpoint)
{
	struct checkpoint_run *c = arg;

	for (size_t i = 0; i < length_of(c->known); i++) {
		struct json_object *o = json_object_array_get_idx(c->known, i);
		const char *id = text_of(o, "id"), *state = text_of(o, "state");

		if (id && state && !strcmp(id, checkpoint) && !strcmp(state, "active"))
			return true;
	}
	return false;
}

static int call(struct checkpoint_run *c, const char *command, const char *id, int success,
		enum qmp_how how, struct error *err)
{
	struct json_object *args = json_object_new_object();

	json_object_object_add(args, "id", json_object_new_string(id));
	if (success >= 0)
		json_object_object_add(args, "success", json_object_new_boolean(success));
	return qmp_call(c->q, command, args, NULL, how, err);
}

/* What the lock file says while checkpoint ID is begun here; false: it cannot be said. */
static bool note_text(const struct backup *b, const char *id, char text[NOTE])
{
	struct stat st;

	if (fstat(b->repo.lock, &st) < 0)
		return false;
	snprintf(text, NOTE, "%s %ju\n", id, (uintmax_t)st.st_ino);
	return true;
}

static void note_begun(const struct backup *b, const char *id)
{
	char text[NOTE];

	if (!note_text(b, id, text) || ftruncate(b->repo.lock, 0) < 0 ||
	    pwrite(b->repo.lock, text, strlen(text), 0) < 0)
		log_info("%s: the checkpoint's name could not be noted: if we are killed, its lease has to run out",
			 b->repo.path);
}

static bool was_begun_here(const struct backup *b, const char *id)
{
	char text[NOTE], note[NOTE];
	ssize_t n = pread(b->repo.lock, note, NOTE, 0);

	return note_text(b, id, text) && n == (ssize_t)strlen(text) && !memcmp(text, note, n);
}

/* Ends what a run of ours that was killed left. */
static int end_leftovers(struct backup *b, struct checkpoint_run *c, struct error *err)
{
	int rc = 0;

	for (size_t i = 0; i < length_of(c->known) && rc == 0; i++) {
		struct json_object *o = json_object_array_get_idx(c->known, i);
		const char *id = text_of(o, "id"), *state = text_of(o, "state");

		if (id && state && is_ours(b, id) && was_begun_here(b, id) &&
		    (!strcmp(state, "pending") || !strcmp(state, "broken")))
			rc = call(c, "checkpoint-end", id, false, QMP_MAY_STOP, err);
		if (rc == -EREMOTEIO)		/* its lease ran out just now */
			rc = 0;
	}
	return rc;
}

/* --- which disks */

int checkpoint_want(struct checkpoint_run *c, const char *name, size_t len, const char *node,
		    const char *export, const char *source, struct error *err)
{
	struct wanted *more = realloc(c->want, (c->n + 1) * sizeof(*more));

	if (!more)
		return error_errno(err, -ENOMEM, "%s", name);
	c->want = more;
	more += c->n;
	*more = (struct wanted){ 0 };
	if (len > REPO_DISK_MAX)
		return error_set(err, -EINVAL, "%.*s: the disk's name is longer than %d bytes; give NAME=...",
				 (int)len, name, REPO_DISK_MAX);
	snprintf(more->name, sizeof(more->name), "%.*s", (int)len, name);
	c->n++;
	more->node = node ? strdup(node) : NULL;
	more->export = export ? strdup(export) : NULL;
	more->source = source ? strdup(source) : NULL;
	return (node && !more->node) || (export && !more->export) ? error_errno(err, -ENOMEM, "%s", name) : 0;
}

/* The export's id in "/machine/peripheral/ID/virtio-backend"; malloc'd. */
static char *export_of(const char *qdev)
{
	static const char head[] = "/machine/peripheral/", tail[] = "/virtio-backend";
	size_t n = qdev ? strlen(qdev) : 0;

	if (n <= strlen(head) + strlen(tail) || strncmp(qdev, head, strlen(head)) ||
	    strcmp(qdev + n - strlen(tail), tail))
		return NULL;
	return strndup(qdev + strlen(head), n - strlen(head) - strlen(tail));
}

/* Every disk that a guest may write to. */
static int want_all(struct checkpoint_run *c, struct json_object *devices, struct error *err)
{
	int rc = 0;

	for (size_t i = 0; i < length_of(devices) && rc == 0; i++) {
		struct json_object *o = json_object_array_get_idx(devices, i);
		struct json_object *inserted = member_of(o, "inserted");
		const char *node = text_of(inserted, "node-name");
		char *export = export_of(text_of(o, "qdev"));
		bool twice = false;

		for (unsigned j = 0; node && j < c->n; j++)
			twice |= !strcmp(c->want[j].node, node);
		if (node && export && !twice && !json_object_get_boolean(member_of(inserted, "ro")))
			rc = checkpoint_want(c, export, strlen(export), node, NULL, text_of(inserted, "file"),
					     err);
		free(export);
	}
	if (rc == 0 && c->n == 0)
		rc = error_set(err, -ENOENT, "%s: the daemon has no disk with a writable export", c->socket);
	return rc;
}

/* [NAME=]DISK: an export's id, else a node. */
static int want_one(struct checkpoint_run *c, struct json_object *devices, const char *what,
		    struct error *err)
{
	const char *eq = strchr(what, '='), *disk = eq ? eq + 1 : what, *source = NULL;
	bool is_export = false;

	for (size_t i = 0; i < length_of(devices); i++) {
		struct json_object *o = json_object_array_get_idx(devices, i);
		char *export = export_of(text_of(o, "qdev"));

		if (export && !strcmp(export, disk)) {
			is_export = true;
			source = text_of(member_of(o, "inserted"), "file");
		}
		free(export);
	}
	return checkpoint_want(c, eq ? what : disk, eq ? (size_t)(eq - what) : strlen(disk),
			       is_export ? NULL : disk, is_export ? disk : NULL, source ? source : disk, err);
}

static int choose(struct backup *b, struct checkpoint_run *c, struct error *err)
{
	struct json_object *devices = NULL;
	int rc = qmp_call(c->q, "query-block", NULL, &devices, QMP_MAY_STOP, err);

	if (rc == 0 && !b->o->n_what)
		rc = want_all(c, devices, err);
	for (unsigned i = 0; i < b->o->n_what && rc == 0; i++)
		rc = want_one(c, devices, b->o->what[i], err);
	json_object_put(devices);
	return rc;
}

/* --- the instant */

/* What is planned for one disk before the daemon has its say. */
struct planned {
	const struct repo_point *parent;	/* NULL: a full */
	char why[512];
	bool full;			/* whatever the chain says, because of WHY */
};

static void plan(struct backup *b, struct checkpoint_run *c, struct planned *p)
{
	for (unsigned i = 0; i < c->n; i++) {
		if (p[i].full)
			p[i].parent = NULL;
		else
			p[i].parent = backup_parent(b, c->want[i].name, UINT64_MAX, is_known, c, p[i].why,
						    sizeof(p[i].why));
	}
}

static struct json_object *begin_args(const struct checkpoint_run *c, const struct planned *p)
{
	struct json_object *args = json_object_new_object(), *disks = json_object_new_array();

	json_object_object_add(args, "id", json_object_new_string(c->id));
	json_object_object_add(args, "lease", json_object_new_int(LEASE_S));
	json_object_object_add(args, "disks", disks);
	for (unsigned i = 0; i < c->n; i++) {
		struct json_object *o = json_object_new_object();
		const struct wanted *w = &c->want[i];

		json_object_object_add(o, w->node ? "node" : "export",
				       json_object_new_string(w->node ? w->node : w->export));
		if (p[i].parent)
			json_object_object_add(o, "since", json_object_new_string(
				repo_disk(p[i].parent, w->name)->checkpoint));
		json_object_array_add(disks, o);
	}
	return args;
}

static int64_t parse_time(const char *text)
{
	struct tm tm = { 0 };

	return text && strptime(text, "%Y-%m-%dT%H:%M:%S", &tm) ? timegm(&tm) : time(NULL);
}

/* Disk I as the daemon offers it.  -EAGAIN: it must be a full one, and P says why. */
static int take_disk(struct backup *b, struct checkpoint_run *c, struct json_object *o, unsigned i,
		     struct planned *p, struct error *err)
{
	const char *reason = text_of(o, "reason");
	bool incremental = json_object_get_boolean(member_of(o, "incremental"));
	struct json_object *size = member_of(o, "size");
	struct backup_disk *d;
	int rc = backup_add_disk(b, c->want[i].name, &d, err);

	if (rc < 0)
		return rc;
	if (!json_object_is_type(size, json_type_int) || json_object_get_uint64(size) > REPO_SIZE_MAX)
		return error_set(err, -EPROTO, "%s: checkpoint-begin: no size of disk '%s'", c->socket,
				 c->want[i].name);
	d->d.size = json_object_get_uint64(size);
	rc = backup_pick_uri(b->o, member_of(o, "uris"), &d->uri, err);
	if (rc < 0)
		return rc;
	d->d.checkpoint = strdup(c->id);
	d->d.source = c->want[i].source ? strdup(c->want[i].source) : NULL;
	if (!d->d.checkpoint)
		return error_errno(err, -ENOMEM, "%s", d->d.name);
	if (!incremental)
		return backup_rest_on(b, d, NULL, p->parent && reason ? reason : p->why, err);
	if (!p->parent)
		return error_set(err, -EPROTO, "%s: checkpoint-begin: disk '%s' is incremental, which nobody "
				 "asked for", c->socket, d->d.name);
	d->bitmap = strdup(repo_disk(p->parent, d->d.name)->checkpoint);
	rc = d->bitmap ? backup_rest_on(b, d, p->parent, NULL, err) : error_errno(err, -ENOMEM, "%s", d->d.name);
	if (rc == 0 && b->doubt_growth && d->d.size > d->chain.layer[0].disk->size)
		rc = error_set(err, -ERANGE, "the disk has grown while another program had it");
	if (rc < 0 && rc != -ENOMEM) {
		snprintf(p->why, sizeof(p->why), "%.*s", (int)sizeof(p->why) - 1, err->text);
		p->full = true;
		*err = ERROR_INIT;
		return -EAGAIN;
	}
	return rc;
}

static int name_checkpoint(struct backup *b, struct checkpoint_run *c, struct error *err)
{
	uint32_t r;

	if (getrandom(&r, sizeof(r), 0) != sizeof(r))
		return error_set(err, -EIO, "no random numbers");
	snprintf(c->id, sizeof(c->id), "merino.%.8s.%s.%08" PRIx32, b->repo.id, b->point, r);
	return 0;
}

/* DIR/agent of DIR/qmp: so merino run has it. */
static const char *agent_beside(const char *socket, char out[PATH_MAX])
{
	const char *slash = strrchr(socket, '/');

	snprintf(out, PATH_MAX, "%.*sagent", slash ? (int)(slash + 1 - socket) : 0, socket);
	return out;
}

/* checkpoint-begin, the guest being at rest if that is asked for and can be had. */
static int take_instant(struct backup *b, struct checkpoint_run *c, struct json_object *args,
			struct json_object **ret, struct error *err)
{
	const struct backup_options *o = b->o;
	char beside[PATH_MAX];
	const struct quiesce_config config = {
		.agent = !o->quiesce ? NULL : o->agent ? o->agent : agent_beside(c->socket, beside),
		.before = o->hook_before, .after = o->hook_after, .limit = o->quiesce_timeout ? o->quiesce_timeout : QUIESCE_S,
		.repository = o->to, .point = b->point, .socket = c->socket,
	};
	bool any = o->quiesce || o->hook_before || o->hook_after;
	struct quiesce *q = any ? quiesce_begin(&config) : NULL;
	int rc = qmp_call(c->q, "checkpoint-begin", args, ret, QMP_MAY_STOP, err);

	b->quiesced = quiesce_end(q, progress_now()) && rc == 0;
	b->consistency = b->quiesced ? "filesystem-consistent" : "crash-consistent";
	return rc;
}

static int begin(struct backup *b, struct checkpoint_run *c, struct planned *p, struct error *err)
{
	struct json_object *ret = NULL, *disks;
	int rc;

	plan(b, c, p);
	rc = name_checkpoint(b, c, err);
	if (rc < 0)
		return rc;
	note_begun(b, c->id);
	c->begun = true;		/* perhaps, if the answer is lost */
	rc = take_instant(b, c, begin_args(c, p), &ret, err);
	if (rc == -EREMOTEIO || rc == -ENOSYS)
		c->begun = false;
	if (rc < 0)
		return rc;
	c->renewed = progress_now();
	disks = member_of(ret, "disks");
	if (length_of(disks) != c->n)
		rc = error_set(err, -EPROTO, "%s: checkpoint-begin: not the disks that were asked for",
			       c->socket);
	b->time = parse_time(text_of(ret, "time"));
	for (unsigned i = 0; i < c->n && rc == 0; i++)
		rc = take_disk(b, c, json_object_array_get_idx(disks, i), i, &p[i], err);
	json_object_put(ret);
	return rc;
}

static int set_server(struct backup *b, struct checkpoint_run *c, struct error *err)
{
	const char *package = qmp_package(c->q);

	free(b->server);
	/* "merino-0.1.0" is what the daemon's protocol has; people write "merinod 0.1.0". */
	if (asprintf(&b->server, "%s%s", strncmp(package, "merino-", 7) ? "" : "merinod ",
		     strncmp(package, "merino-", 7) ? package : package + 7) < 0)
		b->server = NULL;
	return b->server ? 0 : error_errno(err, -ENOMEM, "%s", package);
}

int checkpoint_open(struct backup *b, struct checkpoint_run *c, struct error *err)
{
	struct planned *p = calloc(c->n, sizeof(*p));
	int rc = p ? set_server(b, c, err) : error_errno(err, -ENOMEM, "%s", c->socket);

	if (rc == 0)
		rc = qmp_call(c->q, "query-checkpoints", NULL, &c->known, QMP_MAY_STOP, err);
	if (rc == 0)
		rc = end_leftovers(b, c, err);
	if (rc == 0)
		rc = begin(b, c, p, err);
	/* Each time a disk more is full, so this ends. */
	for (unsigned i = 0; i < c->n && rc == -EAGAIN; i++) {
		rc = call(c, "checkpoint-end", c->id, false, QMP_MUST_END, err);
		c->begun = rc != 0;
		backup_forget_disks(b);
		if (rc == 0)
			rc = begin(b, c, p, err);
	}
	free(p);
	return rc;
}

/* --- while it copies */

/* The connection to the daemon was lost: a new one, if there is still a daemon. */
static int connect_again(struct checkpoint_run *c, struct error *err)
{
	qmp_close(c->q);
	c->q = NULL;
	return qmp_connect(c->socket, CONNECT_MS, &c->q, err);
}

int checkpoint_keep(struct backup *b, struct checkpoint_run *c, struct error *err)
{
	int rc;

	if (progress_now() - c->renewed < RENEW_NS)
		return 0;
	rc = call(c, "checkpoint-renew", c->id, -1, QMP_MAY_STOP, err);
	if (rc < 0 && rc != -EREMOTEIO && rc != -EINTR) {
		rc = connect_again(c, err);
		if (rc == 0)
			rc = call(c, "checkpoint-renew", c->id, -1, QMP_MAY_STOP, err);
	}
	c->renewed = progress_now();
	return rc;
}

/* --- the end */

/* Whether a point, or the next run, may start from the checkpoint ID. */
static bool is_needed(const struct backup *b, const struct checkpoint_run *c, const char *id)
{
	if (!strcmp(id, c->id))
		return true;
	for (unsigned i = 0; i < b->n; i++)	/* should the new point be found damaged */
		if (b->disk[i].bitmap && !strcmp(b->disk[i].bitmap, id))
			return true;
	for (unsigned i = 0; i < b->repo.n; i++) {
		const struct repo_point *p = &b->repo.point[i];

		for (unsigned j = 0; j < p->n && p->readable; j++)
			if (p->disk[j].checkpoint && !strcmp(p->disk[j].checkpoint, id) &&
			    repo_last(&b->repo, p->disk[j].name) == p)
				return true;
	}
	return false;
}

/* What cannot be deleted now is deleted by a later run. */
static void delete_old(struct backup *b, struct checkpoint_run *c)
{
	struct error err = ERROR_INIT;

	if (repo_rescan(&b->repo, &err) < 0)
		return;
	for (size_t i = 0; i < length_of(c->known); i++) {
		struct json_object *o = json_object_array_get_idx(c->known, i);
		const char *id = text_of(o, "id"), *state = text_of(o, "state");

		if (id && state && is_ours(b, id) && !strcmp(state, "active") && !is_needed(b, c, id) &&
		    call(c, "checkpoint-delete", id, -1, QMP_MUST_END, &err) < 0)
			return;
	}
}

int checkpoint_close(struct backup *b, struct checkpoint_run *c, bool success, struct error *err)
{
	int rc = 0;

	if (c->begun && c->q) {
		rc = call(c, "checkpoint-end", c->id, success, QMP_MUST_END, err);
		if (rc < 0 && rc != -EREMOTEIO && connect_again(c, err) == 0)
			rc = call(c, "checkpoint-end", c->id, success, QMP_MUST_END, err);
	}
	if (rc == 0 && success)
		delete_old(b, c);
	if (rc < 0 && success)
		error_prefix(err, "the restore point %s is good, but the daemon could not be told, and the "
			     "next one will rest on an earlier one: ", b->point);
	if (rc < 0 && !success) {	/* its lease runs out; the run has failed for another reason */
		*err = ERROR_INIT;
		rc = 0;
	}
	c->begun = false;
	return rc;
}

void checkpoint_run_clear(struct checkpoint_run *c)
{
	for (unsigned i = 0; i < c->n; i++) {
		free(c->want[i].node);
		free(c->want[i].export);
		free(c->want[i].source);
	}
	free(c->want);
	json_object_put(c->known);
	qmp_close(c->q);
	*c = (struct checkpoint_run){ 0 };
}

/* --- a daemon that runs: --socket */

static struct checkpoint_run live;

static int open_live(struct backup *b, struct error *err)
{
	int rc;

	live.socket = b->o->socket;
	rc = qmp_connect(live.socket, 0, &live.q, err);
	if (rc == 0)
		rc = choose(b, &live, err);
	return rc ? rc : checkpoint_open(b, &live, err);
}

static int keep_live(struct backup *b, struct error *err)
{
	return checkpoint_keep(b, &live, err);
}

static int end_live(struct backup *b, bool success, struct error *err)
{
	int rc = checkpoint_close(b, &live, success, err);

	checkpoint_run_clear(&live);
	return rc;
}

const struct backup_source backup_checkpoint = { open_live, keep_live, end_live };
