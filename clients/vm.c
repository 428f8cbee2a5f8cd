// SPDX-License-Identifier: BSD-3-Clause
/* vm: see vm.h.
 *
 * Whoever can enter the directory controls the machine, so it is the user's alone, and it
 * is not entered when it is somebody else's.  The lock tells a machine that runs from what
 * a killed one has left; the file is removed while it is held, by its holder.
 */
#include "clients/vm.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { TRIES_MAX = 100, LOCK_TRIES = 20, LOCK_NAP_NS = 5000000 };

static const char *const files[] = {
	"qmp", "serial", "agent", "merinod.qmp", "nbd", "merinod.pid", "frozen", "log", NULL
};

void vm_file(const struct vm *vm, const char *name, char out[PATH_MAX])
{
	snprintf(out, PATH_MAX, "%s/%s", vm->dir, name);
}

int vm_base(const char *base, char out[VM_PATH_MAX], struct error *err)
{
	const char *runtime = getenv("XDG_RUNTIME_DIR");
	int n;

	if (base)
		n = snprintf(out, VM_PATH_MAX, "%s", base);
	else if (runtime && *runtime)
		n = snprintf(out, VM_PATH_MAX, "%s/merino", runtime);
	else if (geteuid() == 0)
		n = snprintf(out, VM_PATH_MAX, "/run/merino");
	else
		return error_set(err, -ENOENT, "XDG_RUNTIME_DIR is not set: say --run-dir");
	if (n >= VM_PATH_MAX || strchr(out, ','))
		return error_set(err, -EINVAL, "%s: a run directory's path is short and has no comma", out);
	return 0;
}

static bool is_name(const char *s)
{
	size_t n = strlen(s);

	for (const char *p = s; *p; p++)
		if (!isalnum((unsigned char)*p) && !strchr("._-", *p))
			return false;
	return n > 0 && n <= 64 && isalnum((unsigned char)*s);
}

int vm_find(struct vm *vm, const char *base, const char *name, struct error *err)
{
	char parent[VM_PATH_MAX];
	int rc = vm_base(base, parent, err);

	*vm = (struct vm){ .lock = -1 };
	if (rc < 0)
		return rc;
	if (!is_name(name))
		return error_set(err, -EINVAL, "'%s': a machine's name has letters, digits, '.', '_' and '-'", name);
	strcpy(vm->name, name);
	if (snprintf(vm->dir, sizeof(vm->dir), "%s/%s", parent, name) >= (int)sizeof(vm->dir))
		return error_set(err, -ENAMETOOLONG, "%s/%s: too long for sockets", parent, name);
	return 0;
}

/* PATH is a directory that only this user can enter. */
static int private_dir(const char *path, struct error *err)
{
	struct stat st;

	if (mkdir(path, 0700) < 0 && errno != EEXIST)
		return error_errno(err, -errno, "%s", path);
	if (lstat(path, &st) < 0)
		return error_errno(err, -errno, "%s", path);
	if (!S_ISDIR(st.st_mode) || st.st_uid != geteuid() || (st.st_mode & 077))
		return error_set(err, -EPERM, "%s: not a directory of this user's alone (mode 0700)", path);
	return 0;
}

/* Who asks whether the machine runs has the lock for a moment, too. */
static bool lock_soon(int fd)
{
	const struct timespec nap = { .tv_nsec = LOCK_NAP_NS };

	for (unsigned i = 0; i < LOCK_TRIES; i++) {
		if (flock(fd, LOCK_EX | LOCK_NB) == 0)
			return true;
		nanosleep(&nap, NULL);
	}
	return false;
}

/* -EAGAIN: the directory went away, with a machine that has just ended. */
static int take_lock(struct vm *vm, struct error *err)
{
	char path[PATH_MAX];
	struct stat ours, there;

	vm_file(vm, "lock", path);
	vm->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (vm->lock < 0 && errno == ENOENT)
		return -EAGAIN;
	if (vm->lock < 0)
		return error_errno(err, -errno, "%s", path);
	if (lock_soon(vm->lock) && fstat(vm->lock, &ours) == 0 &&
	    stat(path, &there) == 0 && ours.st_ino == there.st_ino)
		return 0;
	close(vm->lock);
	vm->lock = -1;
	return error_set(err, -EBUSY, "the machine '%s' runs already", vm->name);
}

static void remove_files(const struct vm *vm)
{
	char path[PATH_MAX];

	for (const char *const *f = files; *f; f++) {
		vm_file(vm, *f, path);
		unlink(path);
	}
}

int vm_take(struct vm *vm, struct error *err)
{
	char base[VM_PATH_MAX];
	int rc;

	strcpy(base, vm->dir);
	*strrchr(base, '/') = 0;
	rc = private_dir(base, err);
	for (unsigned tries = 0; rc == 0 && vm->lock < 0; tries++) {
		rc = private_dir(vm->dir, err);
		if (rc == 0)
			rc = take_lock(vm, err);
		if (rc == -EAGAIN)
			rc = tries < TRIES_MAX ? 0 : error_set(err, -EBUSY, "%s: goes away again and again", vm->dir);
	}
	if (rc == 0)
		remove_files(vm);
	return rc;
}

void vm_give_up(struct vm *vm)
{
	char path[PATH_MAX];

	if (vm->lock < 0)
		return;
	remove_files(vm);
	vm_file(vm, "lock", path);
	unlink(path);
	rmdir(vm->dir);
	close(vm->lock);
	vm->lock = -1;
}

/* Between the lock's end and the directory's. */
bool vm_is_leaving(const struct vm *vm)
{
	char path[PATH_MAX];

	vm_file(vm, "lock", path);
	return access(path, F_OK) < 0 && access(vm->dir, F_OK) == 0;
}

bool vm_runs(const struct vm *vm)
{
	char path[PATH_MAX];
	bool runs;
	int fd;

	vm_file(vm, "lock", path);
	fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0)
		return false;
	runs = flock(fd, LOCK_SH | LOCK_NB) < 0;	/* two may ask at once */
	close(fd);
	return runs;
}
