/* SPDX-License-Identifier: BSD-3-Clause */
/* Guest memory: see memory.h.
 *
 * The memfd is sparse and sealed: nobody who gets a copy of the descriptor can cut it
 * short under us.  Its pages stay out of core files.
 */
#include "vmm/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "common/checked.h"
#include "common/log.h"
#include "common/size.h"

#define PAGE 4096u

static int check_size(uint64_t size, struct error *err)
{
	if (size < MEMORY_MIN || size > MEMORY_MAX)
		return error_set(err, -EINVAL, "memory size must be from 8 MiB to 1 TiB");
	if (!is_aligned(size, PAGE))
		return error_set(err, -EINVAL, "memory size must be a multiple of 4 KiB");
	return 0;
}

/* Pages are taken when the guest touches them, so this may go well; or end in the OOM killer. */
static void warn_of_size(uint64_t size)
{
	char asked[SIZE_TEXT_MAX], has[SIZE_TEXT_MAX];
	struct sysinfo host;

	if (sysinfo(&host) || size / host.mem_unit <= host.totalram)
		return;
	log_warning("the guest's memory is %s, and this host's %s", size_format(asked, sizeof(asked), size),
		    size_format(has, sizeof(has), (uint64_t)host.totalram * host.mem_unit));
}

int memory_make(struct memory *m, uint64_t size, struct error *err)
{
	int rc = check_size(size, err);

	*m = (struct memory){ .fd = -1 };
	if (rc)
		return rc;
	warn_of_size(size);
	m->fd = memfd_create("guest memory", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (m->fd < 0)
		return error_errno(err, -errno, "cannot make the guest's memory");
	m->base = MAP_FAILED;
	if (!ftruncate(m->fd, (off_t)size) &&
	    !fcntl(m->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
		m->base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, m->fd, 0);
	if (m->base == MAP_FAILED) {
		rc = error_errno(err, -errno, "cannot make the guest's memory");
		m->base = NULL;
		memory_end(m);
		return rc;
	}
	madvise(m->base, size, MADV_DONTDUMP);
	madvise(m->base, size, MADV_HUGEPAGE);
	m->size = size;
	m->low = min_u64(size, MEMORY_HOLE);
	m->high = size - m->low;
	return 0;
}

void memory_end(struct memory *m)
{
	if (m->base)
		munmap(m->base, m->size);
	if (m->fd >= 0)
		close(m->fd);
	*m = (struct memory){ .fd = -1 };
}
