/* SPDX-License-Identifier: BSD-3-Clause */
/* sandbox-landlock: files that can be reached by their names.
 *
 * All rights of the kernel's ABI are taken away and given back below the paths
 * that are allowed, but for executing, devices and links, which nobody gets.
 * Descriptors that are open, or are passed in, stay usable.  Sockets that others
 * listen on can be connected to.  The C library has no wrappers, and Debian 12's
 * headers end at ABI 2: what is newer is given by its number.
 */
#include "common/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/landlock.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define FS_REFER (1ull << 13)		/* ABI 2 */
#define FS_TRUNCATE (1ull << 14)	/* ABI 3 */
#define FS_IOCTL_DEV (1ull << 15)	/* ABI 5 */

#define READ_RIGHTS (LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR)
#define WRITE_RIGHTS (LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_REMOVE_FILE | \
		      LANDLOCK_ACCESS_FS_MAKE_REG | LANDLOCK_ACCESS_FS_MAKE_SOCK | \
		      FS_REFER | FS_TRUNCATE | FS_IOCTL_DEV)
#define SOCKET_RIGHTS (LANDLOCK_ACCESS_FS_MAKE_SOCK | LANDLOCK_ACCESS_FS_REMOVE_FILE)
/* Those that make sense for a file; others in its rule are refused. */
#define FILE_RIGHTS (LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_WRITE_FILE | \
		     FS_TRUNCATE | FS_IOCTL_DEV)

static uint64_t handled;		/* what this kernel can take away */

static uint64_t rights_of_abi(long abi)
{
	unsigned bits = abi >= 5 ? 16 : abi >= 3 ? 15 : abi == 2 ? 14 : 13;

	return (1ull << bits) - 1;
}

int landlock_open(struct error *err)
{
	struct landlock_ruleset_attr attr;
	long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
	long fd;

	if (abi < 0)
		return error_set(err, -ENOSYS, "this kernel has no Landlock, or it is not switched on");
	handled = rights_of_abi(abi);
	attr = (struct landlock_ruleset_attr){ .handled_access_fs = handled };
	fd = syscall(SYS_landlock_create_ruleset, &attr, sizeof(attr), 0);
	return fd < 0 ? error_errno(err, -errno, "landlock_create_ruleset") : (int)fd;
}

static uint64_t rights(unsigned access)
{
	uint64_t r = 0;

	if (access & ALLOW_READ)
		r |= READ_RIGHTS;
	if (access & ALLOW_WRITE)
		r |= WRITE_RIGHTS;
	if (access & ALLOW_SOCKET)
		r |= SOCKET_RIGHTS;
	if (access & ALLOW_REMOVE)
		r |= LANDLOCK_ACCESS_FS_REMOVE_FILE;
	if (access & ALLOW_DIRS)
		r |= LANDLOCK_ACCESS_FS_MAKE_DIR | LANDLOCK_ACCESS_FS_REMOVE_DIR;
	return r & handled;
}

int landlock_allow(int ruleset, const char *path, unsigned access)
{
	struct landlock_path_beneath_attr rule = { .allowed_access = rights(access) };
	struct stat st;
	int rc = 0;

	rule.parent_fd = open(path, O_PATH | O_CLOEXEC);
	if (rule.parent_fd < 0)
		return -errno;
	if (fstat(rule.parent_fd, &st) < 0)
		rc = -errno;
	if (!rc && !S_ISDIR(st.st_mode))
		rule.allowed_access &= FILE_RIGHTS;
	if (!rc && rule.allowed_access &&
	    syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &rule, 0) < 0)
		rc = -errno;
	close(rule.parent_fd);
	return rc;
}

int landlock_start(int ruleset, struct error *err)
{
	if (syscall(SYS_landlock_restrict_self, ruleset, 0) < 0)
		return error_errno(err, -errno, "landlock_restrict_self");
	return 0;
}
