// SPDX-License-Identifier: BSD-3-Clause
/* private-dir: see private-dir.h.
 *
 * Whoever made a directory holds a lock on it as long as he lives: what is not locked was
 * left by one that was killed.  One so young may be about to be locked.
 */
#include "common/private-dir.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { LOCK_SOON_S = 60, RANDOM_LEN = 6, TRIES = 100, PARENT_MAX = 70 };

/* Opened at PARENT, and locked by us; -1: it is none of ours, or in use. */
static int open_stale(int parent, const char *name)
{
	int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	struct stat st;

	if (fd >= 0 && fstat(fd, &st) == 0 && st.st_uid == geteuid() && (st.st_mode & 07777) == 0700 &&
	    st.st_mtime + LOCK_SOON_S < time(NULL) && flock(fd, LOCK_EX | LOCK_NB) == 0)
		return fd;
	if (fd >= 0)
		close(fd);
	return -1;
}

/* Sockets, a log, overlays: there are no directories in it.  Takes FD. */
static void remove_stale(int parent, const char *name, int fd)
{
	DIR *d = fdopendir(fd);
	struct dirent *e;

	while (d && (e = readdir(d)))
		if (strcmp(e->d_name, ".") && strcmp(e->d_name, ".."))
			unlinkat(fd, e->d_name, 0);
	unlinkat(parent, name, AT_REMOVEDIR);
	if (d)
		closedir(d);
	else
		close(fd);
}

/* Those that runs before ours have left in PARENT. */
static void sweep(const char *parent, const char *name)
{
	size_t len = strlen(name);
	DIR *d = opendir(parent);
	struct dirent *e;
	int fd;

	while (d && (e = readdir(d)))
		if (strncmp(e->d_name, name, len) == 0 && e->d_name[len] == '-' &&
		    strlen(e->d_name) == len + 1 + RANDOM_LEN && (fd = open_stale(dirfd(d), e->d_name)) >= 0)
			remove_stale(dirfd(d), e->d_name, fd);
	if (d)
		closedir(d);
}

/* The lock is held until this process ends.  False: PATH was swept away before it was ours. */
static bool hold(const char *path)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct stat st;

	if (fd >= 0 && flock(fd, LOCK_SH) == 0 && fstat(fd, &st) == 0 && st.st_nlink)
		return true;
	if (fd >= 0)
		close(fd);
	return false;
}

int private_dir_make(const char *parent, const char *fallback, const char *name, char **out, struct error *err)
{
	int rc = -EAGAIN;

	if (!parent || !*parent || strlen(parent) > PARENT_MAX || access(parent, W_OK | X_OK) < 0)
		parent = fallback;
	sweep(parent, name);
	for (unsigned i = 0; i < TRIES && rc == -EAGAIN; i++) {
		if (asprintf(out, "%s/%s-XXXXXX", parent, name) < 0) {
			*out = NULL;
			return error_errno(err, -ENOMEM, "%s", parent);
		}
		if (!mkdtemp(*out))
			rc = -errno;
		else if (hold(*out))
			return 0;
		if (rc == -EAGAIN && i + 1 < TRIES)
			free(*out);
	}
	rc = error_errno(err, rc, "%s", *out);
	free(*out);
	*out = NULL;
	return rc;
}
