/* SPDX-License-Identifier: BSD-3-Clause */
/* A loop's ring, and what it may do.
 *
 * seccomp(2) does not see what a ring is asked to do: it could open files and
 * connect sockets behind any filter.  So rings are made disabled, restricted to
 * the operations that io-uring.c and loop.c submit, and then enabled; from then
 * on the kernel refuses other operations, flags and registrations (-EACCES).
 * Whoever submits a new operation adds it here: tests/process/ compares.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

#include "common/loop-int.h"

#define LOOP_RING_ENTRIES 512

/* liburing maps and unmaps rings behind ThreadSanitizer's back.  One that begins where another
 * thread's ring has been comes after it: the kernel sees to that. */
#if defined(__SANITIZE_THREAD__)
static int addresses;
#define ADDRESSES_TAKEN() __tsan_acquire(&addresses)
#define ADDRESSES_GIVEN() __tsan_release(&addresses)
#else
#define ADDRESSES_TAKEN() ((void)0)
#define ADDRESSES_GIVEN() ((void)0)
#endif

static const uint8_t operations[] = {
	IORING_OP_POLL_ADD,
	IORING_OP_READ,
	IORING_OP_WRITE,
	IORING_OP_FSYNC,
	IORING_OP_RECV,
	IORING_OP_ASYNC_CANCEL,
};

#define N_OPERATIONS (sizeof(operations) / sizeof(operations[0]))

/* liburing 2.3 declares what stands below, and does not export it. */
static int ring_register(struct io_uring *ring, unsigned opcode, void *arg, unsigned n)
{
	return syscall(SYS_io_uring_register, ring->ring_fd, opcode, arg, n) < 0 ? -errno : 0;
}

static int ring_restrict(struct io_uring *ring)
{
	struct io_uring_restriction r[N_OPERATIONS];
	int rc;

	memset(r, 0, sizeof(r));
	for (unsigned i = 0; i < N_OPERATIONS; i++) {
		r[i].opcode = IORING_RESTRICTION_SQE_OP;
		r[i].sqe_op = operations[i];
	}
	rc = ring_register(ring, IORING_REGISTER_RESTRICTIONS, r, N_OPERATIONS);
	return rc ? rc : ring_register(ring, IORING_REGISTER_ENABLE_RINGS, NULL, 0);
}

/* On the ring's own thread: the one that enables it is the only one that may submit. */
int loop_ring_open(struct io_uring *ring)
{
	struct io_uring_params best = {
		.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
			 IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_CLAMP | IORING_SETUP_CQSIZE |
			 IORING_SETUP_R_DISABLED,
		.cq_entries = LOOP_RING_ENTRIES * 8,
	};
	struct io_uring_params plain = {
		.flags = IORING_SETUP_CLAMP | IORING_SETUP_R_DISABLED,
	};
	const char *choice = getenv("MERINO_IO");
	int rc;

	if (choice && !strcmp(choice, "threads"))
		return -ENOSYS;
	rc = io_uring_queue_init_params(LOOP_RING_ENTRIES, ring, &best);
	if (rc == -EINVAL)		/* before Linux 6.1 */
		rc = io_uring_queue_init_params(LOOP_RING_ENTRIES, ring, &plain);
	if (rc)
		return rc;
	ADDRESSES_TAKEN();
	rc = ring_restrict(ring);
	if (rc)
		loop_ring_close(ring);
	return rc;
}

void loop_ring_close(struct io_uring *ring)
{
	ADDRESSES_GIVEN();
	io_uring_queue_exit(ring);
}
