/* SPDX-License-Identifier: BSD-3-Clause */
/* commands-fd: descriptors that clients send with SCM_RIGHTS: getfd gives one a name,
 * add-fd puts one into a set (common/fdset.h).  And --add-fd.
 *
 * The monitor keeps what came last with a client's bytes; the command that reads them
 * takes the first of them.  None of these commands waits: what the monitor says is
 * there is of the client that asks.
 */
#include "nbd-server/commands.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/fdset.h"
#include "common/options.h"

#define NAMES_MAX 256

const struct qmp_arg args_fdname[] = {
	{ "fdname", QMP_STR, true, "the descriptor's name" },
	{ NULL },
};

const struct qmp_arg args_add_fd[] = {
	{ "fdset-id", QMP_INT, false, "the set; a new one by default" },
	{ "opaque", QMP_STR, false, "a text for people" },
	{ NULL },
};

const struct qmp_arg args_remove_fd[] = {
	{ "fdset-id", QMP_INT, true, "the set" },
	{ "fd", QMP_INT, false, "one of its descriptors; all by default" },
	{ NULL },
};

/* The first of those that came; the others are closed, as in QEMU. */
static int take_received(struct error *err)
{
	int fd = -1;

	if (qmp_received && qmp_received->n) {
		fd = qmp_received->fds[0];
		for (unsigned i = 1; i < qmp_received->n; i++)
			close(qmp_received->fds[i]);
		qmp_received->n = 0;
	}
	return fd < 0 ? error_set(err, -EBADF, "No file descriptor supplied via SCM_RIGHTS") : fd;
}

/* -- names ---------------------------------------------------------------------------- */

static struct named {
	struct named *next;
	int fd;
	char name[];
} *names;
static unsigned n_names;

static struct named **find(const char *name)
{
	struct named **p = &names;

	while (*p && strcmp((*p)->name, name))
		p = &(*p)->next;
	return p;
}

int named_fd_take(const char *name)
{
	struct named **p = find(name), *n = *p;
	int fd;

	if (!n)
		return -ENOENT;
	fd = n->fd;
	*p = n->next;
	n_names--;
	free(n);
	return fd;
}

static int name_it(const char *name, int fd, struct error *err)
{
	struct named *n = *find(name);

	if (n) {
		close(n->fd);
		n->fd = fd;
		return 0;
	}
	if (n_names >= NAMES_MAX)
		return error_set(err, -EMFILE, "There are %d named file descriptors already",
				 NAMES_MAX);
	n = malloc(sizeof(*n) + strlen(name) + 1);
	if (!n)
		return error_set(err, -ENOMEM, "Out of memory");
	n->fd = fd;
	strcpy(n->name, name);
	n->next = names;
	names = n;
	n_names++;
	return 0;
}

COMMAND(command_getfd)
{
	const char *name = qmp_str(args, "fdname");
	int fd = take_received(err), rc;

	if (fd < 0)
		return fd;
	if (*name >= '0' && *name <= '9')
		rc = error_set(err, -EINVAL,
			       "Parameter 'fdname' expects a name not starting with a digit");
	else
		rc = name_it(name, fd, err);
	if (rc)
		close(fd);
	return rc;
}

COMMAND(command_closefd)
{
	const char *name = qmp_str(args, "fdname");
	int fd = named_fd_take(name);

	if (fd < 0)
		return error_set(err, fd, "File descriptor named '%s' not found", name);
	close(fd);
	return 0;
}

/* -- sets ------------------------------------------------------------------------------- */

static bool take_int(struct json_object *args, const char *key, int64_t *out)
{
	struct json_object *v;

	if (!json_object_object_get_ex(args, key, &v))
		return false;
	*out = json_object_get_int64(v);
	return true;
}

COMMAND(command_add_fd)
{
	int64_t id = -1;
	int fd = take_received(err), rc;

	if (fd < 0)
		return fd;
	if (take_int(args, "fdset-id", &id) && id < 0)
		rc = error_set(err, -EINVAL, "Parameter 'fdset-id' expects a non-negative value");
	else
		rc = fdset_add(id, fd, qmp_str(args, "opaque"), &id, err);
	if (rc) {
		close(fd);
		return rc;
	}
	*ret = json_object_new_object();
	json_object_object_add(*ret, "fdset-id", json_object_new_int64(id));
	json_object_object_add(*ret, "fd", json_object_new_int(fd));
	return 0;
}

COMMAND(command_remove_fd)
{
	int64_t id = -1, fd = -1;
	bool one = take_int(args, "fd", &fd);
	char name[64];

	take_int(args, "fdset-id", &id);
	if (one)
		snprintf(name, sizeof(name), "fdset-id:%lld, fd:%lld", (long long)id, (long long)fd);
	else
		snprintf(name, sizeof(name), "fdset-id:%lld", (long long)id);
	if (id < 0 || (one && (fd < 0 || fd > INT_MAX)) || fdset_remove(id, (int)fd))
		return error_set(err, -ENOENT, "File descriptor named '%s' not found", name);
	return 0;
}

struct listing {
	struct json_object *list, *fds;
	int64_t id;
};

static void list_fd(int64_t id, int fd, const char *opaque, void *arg)
{
	struct listing *l = arg;
	struct json_object *o = json_object_new_object();

	if (!l->fds || l->id != id) {
		struct json_object *set = json_object_new_object();

		l->fds = json_object_new_array();
		l->id = id;
		json_object_object_add(set, "fdset-id", json_object_new_int64(id));
		json_object_object_add(set, "fds", l->fds);
		json_object_array_add(l->list, set);
	}
	json_object_object_add(o, "fd", json_object_new_int(fd));
	if (opaque)
		json_object_object_add(o, "opaque", json_object_new_string(opaque));
	json_object_array_add(l->fds, o);
}

COMMAND(command_query_fdsets)
{
	struct listing l = { .list = json_object_new_array() };

	fdset_each(list_fd, &l);
	*ret = l.list;
	return 0;
}

/* -- the command line ---------------------------------------------------------------------- */

int add_fd_option(struct json_object *opts, struct error *err)
{
	uint64_t fd = 0, set = 0;
	char *opaque = NULL;
	int64_t id;
	int rc, copy;

	rc = opts_require(opts, "fd", err);
	if (!rc)
		rc = opts_u64(opts, "fd", &fd, err);
	if (!rc)
		rc = opts_require(opts, "set", err);
	if (!rc)
		rc = opts_u64(opts, "set", &set, err);
	if (!rc)
		rc = opts_str(opts, "opaque", &opaque, err);
	if (!rc)
		rc = opts_end(opts, err);
	if (!rc && (fd > INT_MAX || set > INT_MAX))
		rc = error_set(err, -EINVAL, "fd and set must be below 2^31");
	if (!rc && fd < 3)
		rc = error_set(err, -EINVAL, "fd cannot be a standard I/O stream");
	if (!rc) {
		copy = fcntl((int)fd, F_DUPFD_CLOEXEC, 3);
		rc = copy < 0 ? error_errno(err, -errno, "fd is not valid or already in use")
			      : fdset_add((int64_t)set, copy, opaque, &id, err);
		if (rc && copy >= 0)
			close(copy);
	}
	free(opaque);
	return rc;
}

void fds_close_all(void)
{
	while (names)
		close(named_fd_take(names->name));
	fdset_remove_all();
}
