/* SPDX-License-Identifier: BSD-3-Clause */
/* state-file: what is in the directory of --state.
 *
 *	lock	held (F_SETLK) by the daemon that uses the directory
 *	state	the last state, whole
 *	state.new	the next one, until it is renamed; what a killed daemon left of it
 *		is overwritten
 *	state.old	what --state-reset has put aside
 *
 *	state   = "merinod-state 1 " 16 hex digits "\n" JSON "\n"
 *	JSON    = {"config":[…],"graph":[…]}, of state-int.h's entries
 *
 * The digits are a checksum (FNV-1a, 64 bits) of all behind the first line: no
 * defence, it tells a damaged file from a whole one.  A new state is written, synced,
 * renamed over the old, and the directory synced: after a crash at any point there
 * is the old one or the new one.  The file is ours, but it is read as a stranger's:
 * a start that finds it wrong refuses, and makes nothing.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/json.h"
#include "common/loop.h"
#include "nbd-server/state-int.h"
#include "common/user.h"

#define STATE_BYTES_MAX (64u << 20)
#define MAGIC "merinod-state "
#define VERSION "1"
#define HEAD_SIZE (sizeof(MAGIC VERSION " 0123456789abcdef\n") - 1)
#define LOCK_RETRIES 100
#define LOCK_PAUSE 20000000		/* ns: 2 s in all, for one that is being killed */

static uint64_t checksum(const char *p, size_t n)
{
	uint64_t h = 0xcbf29ce484222325u;

	while (n--)
		h = (h ^ (uint8_t)*p++) * 0x100000001b3u;
	return h;
}

/* -- the directory ---------------------------------------------------------------- */

static int open_dir(struct state *s, struct error *err)
{
	const char *dir = s->o.dir;
	bool made = mkdir(dir, 0700) == 0;

	if (!made && errno != EEXIST)
		return error_errno(err, -errno, "--state %s: cannot make the directory", dir);
	s->dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (s->dir_fd < 0)
		return error_errno(err, -errno, "--state %s", dir);
	return made ? user_give(s->dir_fd, err) : 0;
}

static int take_lock(struct state *s, struct error *err)
{
	struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
	struct timespec pause = { .tv_nsec = LOCK_PAUSE };

	s->lock_fd = openat(s->dir_fd, "lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (s->lock_fd < 0)
		return error_errno(err, -errno, "--state %s: lock", s->o.dir);
	for (unsigned i = 0; i < LOCK_RETRIES; i++) {
		if (fcntl(s->lock_fd, F_SETLK, &l) == 0)
			return 0;
		if (errno != EAGAIN && errno != EACCES)
			return error_errno(err, -errno, "--state %s: lock", s->o.dir);
		nanosleep(&pause, NULL);
	}
	fcntl(s->lock_fd, F_GETLK, &l);
	return error_set(err, -EBUSY, "--state %s: another merinod uses it (process %ld)", s->o.dir,
			 (long)l.l_pid);
}

/* -- reading ------------------------------------------------------------------- */

static int damaged(const struct state *s, const char *how, struct error *err)
{
	error_set(err, -EINVAL, "--state %s: the state is %s", s->o.dir, how);
	error_hint(err, "--state-reset puts it aside and begins with what the configuration says");
	return -EINVAL;
}

/* The shape that the rest of the code relies on. */
static bool entry_is_whole(struct json_object *e)
{
	static const struct {
		const char *name;
		enum json_type type;
	} members[] = { { "kind", json_type_string }, { "key", json_type_string },
			{ "args", json_type_object } };
	bool known = false;

	if (json_object_is_type(e, json_type_object))
		json_object_object_del(e, "missing");	/* of the last process */
	for (unsigned i = 0; i < 3; i++) {
		struct json_object *v;

		if (!json_object_is_type(e, json_type_object) ||
		    !json_object_object_get_ex(e, members[i].name, &v) ||
		    !json_object_is_type(v, members[i].type))
			return false;
	}
	for (unsigned kind = 0; kind < STATE_KINDS; kind++)
		known |= state_entry_is(e, kind);
	return known && json_object_object_length(e) == 3;
}

static struct json_object *take_list(struct json_object *o, const char *name)
{
	struct json_object *list = json_object_object_get(o, name);

	if (!json_object_is_type(list, json_type_array))
		return NULL;
	for (size_t i = 0; i < json_object_array_length(list); i++) {
		if (!entry_is_whole(json_object_array_get_idx(list, i)))
			return NULL;
	}
	return json_object_get(list);
}

static int parse(struct state *s, const char *text, size_t n, struct error *err)
{
	struct json_limits limits = { .bytes = STATE_BYTES_MAX, .tokens = 16u << 20 };
	char head[HEAD_SIZE + 1];
	struct json_object *o;
	unsigned line;

	if (n < HEAD_SIZE || strncmp(text, MAGIC, strlen(MAGIC)))
		return damaged(s, "damaged: it does not begin as one", err);
	if (strncmp(text + strlen(MAGIC), VERSION " ", strlen(VERSION " ")))
		return damaged(s, "of another version of merinod", err);
	snprintf(head, sizeof(head), MAGIC VERSION " %016" PRIx64 "\n",
		 checksum(text + HEAD_SIZE, n - HEAD_SIZE));
	if (strncmp(text, head, HEAD_SIZE))
		return damaged(s, "damaged: its checksum is wrong", err);
	if (json_parse_document(text + HEAD_SIZE, n - HEAD_SIZE, &limits, &o, &line, err))
		return damaged(s, "damaged: it is no JSON", err);
	s->graph = take_list(o, "graph");
	s->config = take_list(o, "config");
	json_object_put(o);
	return s->graph && s->config ? 0 : damaged(s, "damaged: members are missing", err);
}

static int load(struct state *s, struct error *err)
{
	int fd = openat(s->dir_fd, "state", O_RDONLY | O_CLOEXEC | O_NOFOLLOW), rc;
	struct stat st;
	char *text;

	if (fd < 0 && errno == ENOENT) {
		s->graph = json_object_new_array();
		s->config = json_object_new_array();
		return 0;
	}
	if (fd < 0 || fstat(fd, &st) < 0)
		return error_errno(err, -errno, "--state %s: state", s->o.dir);
	if (!S_ISREG(st.st_mode) || st.st_size > STATE_BYTES_MAX) {
		close(fd);
		return damaged(s, "damaged: no file of its size", err);
	}
	text = malloc((size_t)st.st_size + 1);
	if (!text || read(fd, text, (size_t)st.st_size) != st.st_size)
		rc = error_errno(err, text ? -EIO : -ENOMEM, "--state %s: state", s->o.dir);
	else
		rc = parse(s, text, (size_t)st.st_size, err);
	free(text);
	close(fd);
	return rc;
}

int state_file_open(struct state *s, struct error *err)
{
	int rc = open_dir(s, err);

	if (!rc)
		rc = take_lock(s, err);
	if (!rc && s->o.reset && renameat(s->dir_fd, "state", s->dir_fd, "state.old") < 0 &&
	    errno != ENOENT)
		rc = error_errno(err, -errno, "--state %s: cannot put it aside", s->o.dir);
	return rc ? rc : load(s, err);
}

void state_file_close(struct state *s)
{
	if (s->lock_fd >= 0)
		close(s->lock_fd);
	if (s->dir_fd >= 0)
		close(s->dir_fd);
	s->lock_fd = s->dir_fd = -1;
}

/* -- writing: on a worker --------------------------------------------------------- */

struct job {
	struct state *s;
	const char *text;
	size_t len;
	int rc;
};

static int write_all(int fd, const char *p, size_t n)
{
	while (n) {
		ssize_t done = write(fd, p, n);

		if (done < 0 && errno != EINTR)
			return -errno;
		if (done > 0) {
			p += done;
			n -= (size_t)done;
		}
	}
	return 0;
}

static void write_job(void *arg)
{
	struct job *j = arg;
	int fd = openat(j->s->dir_fd, "state.new",
			O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);

	j->rc = fd < 0 ? -errno : write_all(fd, j->text, j->len);
	if (!j->rc && fsync(fd) < 0)
		j->rc = -errno;
	if (fd >= 0)
		close(fd);
}

static void commit_job(void *arg)
{
	struct job *j = arg;

	j->rc = renameat(j->s->dir_fd, "state.new", j->s->dir_fd, "state") < 0 ? -errno : 0;
	if (!j->rc && fsync(j->s->dir_fd) < 0)
		j->rc = -errno;
}

static char *make_text(struct state *s, struct json_object *graph)
{
	struct json_object *o = json_object_new_object();
	const char *json;
	char *text = NULL, head[HEAD_SIZE + 1];

	json_object_object_add(o, "config", json_object_get(s->config));
	json_object_object_add(o, "graph", json_object_get(graph));
	json = json_write(o);
	if (!json || asprintf(&text, "%*s%s\n", (int)HEAD_SIZE, "", json) < 0)
		text = NULL;
	json_object_put(o);
	if (!text)
		return NULL;
	snprintf(head, sizeof(head), MAGIC VERSION " %016" PRIx64 "\n",
		 checksum(text + HEAD_SIZE, strlen(text + HEAD_SIZE)));
	memcpy(text, head, HEAD_SIZE);
	return text;
}

int state_file_write(struct state *s, struct json_object *graph, struct error *err)
{
	char *text = make_text(s, graph);
	struct job j = { s, text, text ? strlen(text) : 0, 0 };

	if (!text)
		return error_set(err, -ENOMEM, "Out of memory");
	if (j.len > STATE_BYTES_MAX)
		j.rc = -EFBIG;
	else
		loop_work(write_job, &j);
	free(text);
	return j.rc ? error_errno(err, j.rc, "--state %s: cannot write the state", s->o.dir) : 0;
}

int state_file_commit(struct state *s, struct error *err)
{
	struct job j = { .s = s };

	loop_work(commit_job, &j);
	return j.rc ? error_errno(err, j.rc, "--state %s: cannot write the state", s->o.dir) : 0;
}

void state_file_drop(struct state *s)
{
	unlinkat(s->dir_fd, "state.new", 0);
}
