/* SPDX-License-Identifier: BSD-3-Clause */
/* fdset: a list of sets, each with a list of descriptors: see fdset.h. */
#include "common/fdset.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct member {
	struct member *next;
	int fd;
	char *opaque;			/* NULL: none */
};

struct fdset {
	struct fdset *next;		/* by id */
	int64_t id;
	struct member *members;
	bool opened;			/* something was duplicated out of it */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct fdset *sets;
static unsigned n_members;

static const char prefix[] = "/dev/fdset/";

/* All with the lock held. */

static struct fdset *find(int64_t id)
{
	struct fdset *s = sets;

	while (s && s->id != id)
		s = s->next;
	return s;
}

/* The lowest id that is free. */
static int64_t free_id(void)
{
	int64_t id = 0;

	for (struct fdset *s = sets; s && s->id == id; s = s->next)
		id++;
	return id;
}

static struct fdset *find_or_make(int64_t id)
{
	struct fdset **p = &sets, *s;

	while (*p && (*p)->id < id)
		p = &(*p)->next;
	if (*p && (*p)->id == id)
		return *p;
	s = calloc(1, sizeof(*s));
	if (!s)
		return NULL;
	s->id = id;
	s->next = *p;
	*p = s;
	return s;
}

static void member_drop(struct member **p)
{
	struct member *m = *p;

	*p = m->next;
	close(m->fd);
	free(m->opaque);
	free(m);
	n_members--;
}

static void drop_empty(void)
{
	for (struct fdset **p = &sets; *p;) {
		struct fdset *s = *p;

		if (s->members) {
			p = &s->next;
			continue;
		}
		*p = s->next;
		free(s);
	}
}

static int add(int64_t *id, int fd, const char *opaque)
{
	struct member *m = calloc(1, sizeof(*m)), **p;
	struct fdset *s = m ? find_or_make(*id < 0 ? free_id() : *id) : NULL;

	if (m && opaque)
		m->opaque = strdup(opaque);
	if (!s || (opaque && !m->opaque)) {
		free(m);
		return -ENOMEM;
	}
	m->fd = fd;
	p = &s->members;
	while (*p)
		p = &(*p)->next;
	*p = m;
	n_members++;
	*id = s->id;
	return 0;
}

/* -- for others --------------------------------------------------------------------- */

int fdset_add(int64_t id, int fd, const char *opaque, int64_t *out, struct error *err)
{
	int rc;

	*out = id;
	pthread_mutex_lock(&lock);
	rc = n_members < FDSET_FDS_MAX ? add(out, fd, opaque) : -EMFILE;
	drop_empty();
	pthread_mutex_unlock(&lock);
	if (rc == -EMFILE)
		return error_set(err, rc, "There are %d file descriptors in sets already",
				 FDSET_FDS_MAX);
	return rc ? error_set(err, rc, "Out of memory") : 0;
}

int fdset_remove(int64_t id, int fd)
{
	struct fdset *s;
	int rc = -ENOENT;

	pthread_mutex_lock(&lock);
	s = find(id);
	for (struct member **p = s ? &s->members : NULL; p && *p;) {
		if (fd >= 0 && (*p)->fd != fd) {
			p = &(*p)->next;
			continue;
		}
		member_drop(p);
		rc = 0;
	}
	drop_empty();
	pthread_mutex_unlock(&lock);
	return rc;
}

static void remove_all(bool opened_too)
{
	pthread_mutex_lock(&lock);
	for (struct fdset *s = sets; s; s = s->next) {
		while (s->members && (opened_too || !s->opened))
			member_drop(&s->members);
	}
	drop_empty();
	pthread_mutex_unlock(&lock);
}

void fdset_remove_unused(void)
{
	remove_all(false);
}

void fdset_remove_all(void)
{
	remove_all(true);
}

bool fdset_is_name(const char *path)
{
	return !strncmp(path, prefix, sizeof(prefix) - 1);
}

/* What FD's file was opened with is shared by its duplicates: so is O_DIRECT. */
static int duplicate(int fd, int oflags)
{
	int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0), flags;

	if (copy < 0)
		return -errno;
	flags = fcntl(copy, F_GETFL);
	if (flags >= 0 && (flags ^ oflags) & O_DIRECT &&
	    fcntl(copy, F_SETFL, flags ^ O_DIRECT) < 0) {
		int rc = -errno;

		close(copy);
		return rc;
	}
	return copy;
}

static int open_of(struct fdset *s, int oflags)
{
	for (struct member *m = s->members; m; m = m->next) {
		int flags = fcntl(m->fd, F_GETFL);

		if (flags >= 0 && (flags & O_ACCMODE) == (oflags & O_ACCMODE)) {
			s->opened = true;
			return duplicate(m->fd, oflags);
		}
	}
	return -EACCES;
}

int fdset_open(const char *path, int oflags)
{
	const char *text = path + sizeof(prefix) - 1;
	struct fdset *s = NULL;
	char *end;
	long long id;
	int rc;

	errno = 0;
	id = strtoll(text, &end, 10);
	if (errno || *text < '0' || *text > '9' || *end)
		return -EINVAL;
	pthread_mutex_lock(&lock);
	s = find(id);
	rc = s ? open_of(s, oflags) : -ENOENT;
	pthread_mutex_unlock(&lock);
	return rc;
}

void fdset_each(void (*fn)(int64_t id, int fd, const char *opaque, void *arg), void *arg)
{
	for (struct fdset *s = sets; s; s = s->next) {
		for (struct member *m = s->members; m; m = m->next)
			fn(s->id, m->fd, m->opaque, arg);
	}
}
