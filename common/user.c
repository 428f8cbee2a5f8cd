/* SPDX-License-Identifier: BSD-3-Clause */
/* user: from root to the user that --user names.
 *
 * The name is looked up at the start, the change comes at the end of it.  glibc's
 * functions change all threads.  Leaving user 0 takes every capability away; that
 * there is no way back is checked, not believed.
 */
#include "common/user.h"

#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool wanted;
static uid_t uid;
static gid_t gid;

/* A whole number below the reserved -1; false: it is a name. */
static bool is_number(const char *text, unsigned *n)
{
	char *end;
	unsigned long v;

	errno = 0;
	v = strtoul(text, &end, 10);
	if (*text < '0' || *text > '9' || *end || errno || v >= UINT32_MAX)
		return false;
	*n = (unsigned)v;
	return true;
}

/* Also sets the group, to the user's own. */
static int find_user(const char *name, struct error *err)
{
	struct passwd *pw;
	unsigned n;

	if (is_number(name, &n)) {
		pw = getpwuid(n);
		uid = n;
		gid = pw ? pw->pw_gid : n;
		return 0;
	}
	pw = getpwnam(name);
	if (!pw)
		return error_set(err, -ENOENT, "there is no user '%s'", name);
	uid = pw->pw_uid;
	gid = pw->pw_gid;
	return 0;
}

static int find_group(const char *name, struct error *err)
{
	struct group *gr;
	unsigned n;

	if (is_number(name, &n)) {
		gid = n;
		return 0;
	}
	gr = getgrnam(name);
	if (!gr)
		return error_set(err, -ENOENT, "there is no group '%s'", name);
	gid = gr->gr_gid;
	return 0;
}

int user_find(const char *text, struct error *err)
{
	const char *colon = strchr(text, ':');
	char name[256];
	int rc;

	snprintf(name, sizeof(name), "%.*s",
		 (int)(colon ? (size_t)(colon - text) : strlen(text)), text);
	rc = find_user(name, err);
	if (!rc && colon)
		rc = find_group(colon + 1, err);
	if (!rc && (uid == 0 || gid == 0))
		rc = error_set(err, -EINVAL, "the user and the group must not be root's");
	if (rc)
		error_prefix(err, "--user %s: ", text);
	wanted = !rc;
	return rc;
}

int user_give(int fd, struct error *err)
{
	if (wanted && fchown(fd, uid, gid) < 0)
		return error_errno(err, -errno, "--user: cannot change an owner");
	return 0;
}

int user_drop(struct error *err)
{
	if (!wanted)
		return 0;
	if (setgroups(0, NULL) < 0 || setresgid(gid, gid, gid) < 0 || setresuid(uid, uid, uid) < 0)
		return error_errno(err, -errno, "--user: cannot become user %u, group %u",
				   (unsigned)uid, (unsigned)gid);
	if (setresuid(0, 0, 0) == 0 || geteuid() != uid || getegid() != gid)
		return error_set(err, -EPERM, "--user: root's rights are still there");
	return 0;
}
