/* SPDX-License-Identifier: BSD-3-Clause */
/* Lock bytes, QEMU's: so that neither writes under the other.
 *
 * A permission that we hold is byte 100 + bit, one that we do not share is byte
 * 200 + bit; each is a shared lock (F_RDLCK) of the open file description that
 * does the I/O.  After taking our own bytes we ask, byte by byte, whether an
 * exclusive lock could be had: if not, somebody else holds it, and we conflict.
 * A killed process's ring can hold its file for tens of milliseconds: retry, unless
 * it is this process itself that is in the way (an image that backs itself, an image
 * opened twice): all files that hold lock bytes are listed for that.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

#include "format/file-int.h"

#define LOCK_PERM_BASE 100
#define LOCK_SHARED_BASE 200
#define LOCK_RETRY_NS 20000000u

static uint64_t lock_patience_ns = 2000000000u;

/* Files that hold lock bytes, of all loops. */
static pthread_mutex_t holders_lock = PTHREAD_MUTEX_INITIALIZER;
static struct file *holders;

void file_lock_patience(uint64_t ns)
{
	lock_patience_ns = ns;
}

static const char *const bit_names[] = { "consistent read", "write", "write unchanged", "resize" };

static int lock_byte(int fd, int base, unsigned bit, short type)
{
	struct flock l = {
		.l_type = type, .l_whence = SEEK_SET, .l_start = base + (int)bit, .l_len = 1,
	};

	return fcntl(fd, F_OFD_SETLK, &l) ? -errno : 0;
}

/* Whether another holds the byte. */
static bool byte_is_held(int fd, int base, unsigned bit)
{
	struct flock l = {
		.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = base + (int)bit, .l_len = 1,
	};

	return !fcntl(fd, F_OFD_GETLK, &l) && l.l_type != F_UNLCK;
}

/* Locks the bytes of WANT that are not in *HELD; unlocks those of *HELD not in KEEP. */
static int lock_bytes(int fd, int base, unsigned want, unsigned keep, unsigned *held)
{
	for (unsigned bit = 0; bit < 4; bit++) {
		unsigned mask = 1u << bit;
		int rc = 0;

		if ((want & mask) && !(*held & mask)) {
			rc = lock_byte(fd, base, bit, F_RDLCK);
			if (!rc)
				*held |= mask;
		} else if ((*held & mask) && !(keep & mask)) {
			rc = lock_byte(fd, base, bit, F_UNLCK);
			*held &= ~mask;
		}
		if (rc)
			return rc;
	}
	return 0;
}

/* Lists S while it holds anything. */
static void holders_update(struct file *s)
{
	bool holds = s->perm_held || s->unshared_held;
	struct file **p = &holders;
	struct stat st;

	if (fstat(s->f->fd, &st))
		return;
	pthread_mutex_lock(&holders_lock);
	while (*p && *p != s)
		p = &(*p)->holder.next;
	if (*p && !holds)
		*p = s->holder.next;
	else if (!*p && holds)
		*p = s;
	s->holder.next = holds ? s->holder.next : NULL;
	s->holder.dev = st.st_dev;
	s->holder.ino = st.st_ino;
	s->holder.perm = s->perm_held;
	s->holder.unshared = s->unshared_held;
	pthread_mutex_unlock(&holders_lock);
}

/* Whether another open file of this process holds bytes that conflict with S. */
static bool is_held_here(const struct file *s, unsigned perm, unsigned unshared)
{
	struct stat st;
	bool found = false;

	if (fstat(s->f->fd, &st))
		return false;
	pthread_mutex_lock(&holders_lock);
	for (const struct file *o = holders; o && !found; o = o->holder.next)
		found = o != s && o->holder.dev == st.st_dev && o->holder.ino == st.st_ino &&
			((o->holder.unshared & perm) || (o->holder.perm & unshared));
	pthread_mutex_unlock(&holders_lock);
	return found;
}

/* On what others conflict with us. */
struct lock_conflict {
	const char *name;		/* of the permission; NULL: no conflict */
	bool shared;			/* we would not share it, and another holds it */
};

static struct lock_conflict lock_find_conflict(int fd, unsigned perm, unsigned unshared)
{
	for (unsigned bit = 0; bit < 4; bit++)
		if ((perm & (1u << bit)) && byte_is_held(fd, LOCK_SHARED_BASE, bit))
			return (struct lock_conflict){ bit_names[bit], false };
	for (unsigned bit = 0; bit < 4; bit++)
		if ((unshared & (1u << bit)) && byte_is_held(fd, LOCK_PERM_BASE, bit))
			return (struct lock_conflict){ bit_names[bit], true };
	return (struct lock_conflict){ 0 };
}

static int lock_try(struct file *s, unsigned perm, unsigned unshared,
		    struct lock_conflict *conflict)
{
	int fd = s->f->fd, rc;
	unsigned perm_before = s->perm_held, unshared_before = s->unshared_held;

	*conflict = (struct lock_conflict){ 0 };
	rc = lock_bytes(fd, LOCK_PERM_BASE, perm, perm | perm_before, &s->perm_held);
	if (!rc)
		rc = lock_bytes(fd, LOCK_SHARED_BASE, unshared, unshared | unshared_before,
				&s->unshared_held);
	if (!rc)
		*conflict = lock_find_conflict(fd, perm & ~perm_before,
					       unshared & ~unshared_before);
	if (rc || conflict->name) {
		lock_bytes(fd, LOCK_PERM_BASE, 0, perm_before, &s->perm_held);
		lock_bytes(fd, LOCK_SHARED_BASE, 0, unshared_before, &s->unshared_held);
		return rc ? rc : -EBUSY;
	}
	lock_bytes(fd, LOCK_PERM_BASE, 0, perm, &s->perm_held);
	lock_bytes(fd, LOCK_SHARED_BASE, 0, unshared, &s->unshared_held);
	return 0;
}

int file_lock_set(struct file *s, const char *filename, unsigned perm, unsigned shared,
		  struct error *err)
{
	unsigned unshared = PERM_ALL & ~shared;
	struct lock_conflict conflict;
	uint64_t waited = 0;
	int rc;

	if (s->f->fd < 0)
		return 0;		/* the simulation has no other processes */
	while ((rc = lock_try(s, perm, unshared, &conflict)) == -EBUSY && waited < lock_patience_ns &&
	       !is_held_here(s, perm, unshared)) {
		io_sleep(s->f->io, LOCK_RETRY_NS);
		waited += LOCK_RETRY_NS;
	}
	holders_update(s);
	if (rc == -EBUSY) {
		error_set(err, -EAGAIN, "Failed to get %s\"%s\" lock", conflict.shared ? "shared " : "",
			  conflict.name);
		error_hint(err, "Is another process using the image [%s]?", filename);
		return -EAGAIN;
	}
	if (rc == -EINVAL || rc == -ENOTSUP || rc == -ENOLCK)
		return 0;		/* a file system without locks: as QEMU's locking=auto */
	return rc ? error_errno(err, rc, "Failed to lock '%s'", filename) : 0;
}

void file_lock_drop(struct file *s)
{
	lock_bytes(s->f->fd, LOCK_PERM_BASE, 0, 0, &s->perm_held);
	lock_bytes(s->f->fd, LOCK_SHARED_BASE, 0, 0, &s->unshared_held);
	holders_update(s);
}

int file_lock_copy(const struct file *s, struct io_file *f)
{
	unsigned perm = 0, unshared = 0;
	int rc = lock_bytes(f->fd, LOCK_PERM_BASE, s->perm_held, s->perm_held, &perm);

	return rc ? rc : lock_bytes(f->fd, LOCK_SHARED_BASE, s->unshared_held, s->unshared_held,
				    &unshared);
}
