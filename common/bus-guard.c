/* SPDX-License-Identifier: BSD-3-Clause */
/* bus-guard: see bus-guard.h.
 *
 * The list of mappings only grows, and is read by the signal's handler without a lock: an
 * entry counts while its start is not 0, and is used again then.
 */
#include "common/bus-guard.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE 4096u

struct guarded {
	struct guarded *next;		/* never changes once it is in the list */
	atomic_uintptr_t start;
	atomic_size_t len;
	atomic_bool lost;
};

static _Atomic(struct guarded *) mappings;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static _Atomic uint64_t lost;

static struct guarded *find(uintptr_t at)
{
	for (struct guarded *g = atomic_load(&mappings); g; g = g->next) {
		uintptr_t start = atomic_load(&g->start);

		if (start && at >= start && at - start < atomic_load(&g->len))
			return g;
	}
	return NULL;
}

static void on_bus_error(int sig, siginfo_t *info, void *context)
{
	uintptr_t at = (uintptr_t)info->si_addr & ~(uintptr_t)(PAGE - 1);
	struct guarded *g = find(at);
	void *p = g ? mmap((void *)at, PAGE, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) : MAP_FAILED;

	if (p == MAP_FAILED) {
		signal(SIGBUS, SIG_DFL);	/* it happens again, and ends us */
		return;
	}
	memset(p, 0xff, PAGE);
	atomic_store(&g->lost, true);
	atomic_fetch_add(&lost, 1);
}

static void install(void)
{
	struct sigaction sa = { .sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO | SA_RESTART };

	sigemptyset(&sa.sa_mask);
	sigaction(SIGBUS, &sa, NULL);
}

/* With the lock held. */
static struct guarded *unused(void)
{
	struct guarded *g = atomic_load(&mappings);

	while (g && atomic_load(&g->start))
		g = g->next;
	if (g)
		return g;
	g = calloc(1, sizeof(*g));
	if (!g)
		return NULL;
	g->next = atomic_load(&mappings);
	atomic_store(&mappings, g);
	return g;
}

void bus_guard_add(void *mem, size_t len)
{
	struct guarded *g;

	pthread_once(&once, install);
	pthread_mutex_lock(&lock);
	g = unused();
	if (g) {
		atomic_store(&g->len, len);
		atomic_store(&g->lost, false);
		atomic_store(&g->start, (uintptr_t)mem);
	}
	pthread_mutex_unlock(&lock);
}

void bus_guard_remove(void *mem)
{
	struct guarded *g;

	pthread_mutex_lock(&lock);
	g = find((uintptr_t)mem);
	if (g)
		atomic_store(&g->start, 0);
	pthread_mutex_unlock(&lock);
}

uint64_t bus_guard_lost(void)
{
	return atomic_load_explicit(&lost, memory_order_relaxed);
}

bool bus_guard_has_lost(const void *mem)
{
	struct guarded *g = find((uintptr_t)mem);

	return g && atomic_load(&g->lost);
}
