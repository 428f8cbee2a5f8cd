/* SPDX-License-Identifier: BSD-3-Clause */
/* Coroutines: see co.h.
 *
 * A coroutine that ends goes back to its thread's pool with its stack, and the
 * next co_start() continues it where it parked: a start costs one switch, no
 * set-up.  Stacks are mmap'd, with a guard page below.  The sanitizers and
 * valgrind are told of every switch; `common/co-gdb.py` shows what is suspended.
 */
#include "common/co.h"

#include <assert.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif
#if __has_include(<valgrind/valgrind.h>)
#include <valgrind/valgrind.h>
#else
#define VALGRIND_STACK_REGISTER(a, b) 0
#define VALGRIND_STACK_DEREGISTER(id) ((void)(id))
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define CO_STACK_SIZE ((size_t)1 << 20)
#else
#define CO_STACK_SIZE ((size_t)256 << 10)	/* touched lazily; most requests use under 8 KiB */
#endif
#define CO_POOL_MAX 256			/* idle stacks kept by a thread */

struct co {
	void *sp;			/* saved stack pointer while not running */
	struct co *caller;		/* who resumed it: where co_suspend() goes */
	struct sched *sched;
	struct co *next;		/* on the ready list, or in the pool */
	bool ready;
	bool ended;
	void (*fn)(void *arg);
	void *arg;
	char *stack;			/* lowest usable byte; NULL: a thread's own stack */
	size_t stack_size;
	unsigned valgrind_id;
	struct co *all_prev, *all_next;	/* for the gdb helper */
#if defined(__SANITIZE_ADDRESS__)
	void *fake_stack;
#endif
#if defined(__SANITIZE_THREAD__)
	void *fiber;
#endif
#if !defined(__x86_64__)
	ucontext_t context;
#endif
};

/* One per thread: its own stack, seen as a coroutine. */
static __thread struct co co_thread;
static __thread struct co *co_current;
static __thread struct sched *co_sched;
static __thread struct co *co_pool;
static __thread unsigned co_pool_size;

/* Every coroutine there is, idle ones included: read by common/co-gdb.py. */
struct co *co_all;
static pthread_mutex_t co_all_lock = PTHREAD_MUTEX_INITIALIZER;

static void co_main(void);

#if defined(__x86_64__)
/* Saves the callee-saved registers on the running stack, its pointer in
 * *SAVE, and goes on where TO was saved. */
void co_swap(void **save, void *to);
__asm__(".text\n"
	".p2align 4\n"
	".globl co_swap\n"
	".hidden co_swap\n"
	".type co_swap,@function\n"
	"co_swap:\n"
	"	pushq %rbp\n"
	"	pushq %rbx\n"
	"	pushq %r12\n"
	"	pushq %r13\n"
	"	pushq %r14\n"
	"	pushq %r15\n"
	"	movq %rsp, (%rdi)\n"
	"	movq %rsi, %rsp\n"
	"	popq %r15\n"
	"	popq %r14\n"
	"	popq %r13\n"
	"	popq %r12\n"
	"	popq %rbx\n"
	"	popq %rbp\n"
	"	ret\n"
	".size co_swap,.-co_swap\n");

static void co_prepare(struct co *co)
{
	uintptr_t *top = (uintptr_t *)(co->stack + co->stack_size);

	*--top = 0;			/* keeps the stack aligned as after a call, ends backtraces */
	*--top = (uintptr_t)co_main;
	top -= 6;			/* six registers of any value */
	for (int i = 0; i < 6; i++)
		top[i] = 0;
	co->sp = top;
}

static inline void co_jump(struct co *from, struct co *to)
{
	co_swap(&from->sp, to->sp);
}
#else
static void co_prepare(struct co *co)
{
	getcontext(&co->context);
	co->context.uc_stack.ss_sp = co->stack;
	co->context.uc_stack.ss_size = co->stack_size;
	co->context.uc_link = NULL;
	makecontext(&co->context, co_main, 0);
}

static inline void co_jump(struct co *from, struct co *to)
{
	swapcontext(&from->context, &to->context);
}
#endif

/* What the sanitizers must hear once a switch has arrived in SELF. */
static inline void co_arrived(struct co *self)
{
	(void)self;
#if defined(__SANITIZE_ADDRESS__)
	const void *bottom;
	size_t size;

	__sanitizer_finish_switch_fiber(self->fake_stack, &bottom, &size);
	if (self->caller && !self->caller->stack) {
		co_thread.stack_size = size;
		co_thread.arg = (void *)bottom;
	}
#endif
}

static inline void co_switch(struct co *from, struct co *to)
{
	co_current = to;
#if defined(__SANITIZE_ADDRESS__)
	__sanitizer_start_switch_fiber(&from->fake_stack, to->stack ? to->stack : to->arg,
				       to->stack_size);
#endif
#if defined(__SANITIZE_THREAD__)
	__tsan_switch_to_fiber(to->fiber, 0);
#endif
	co_jump(from, to);
#if defined(__SANITIZE_ADDRESS__)
	__sanitizer_finish_switch_fiber(from->fake_stack, NULL, NULL);
#endif
}

static void co_main(void)
{
	struct co *self = co_current;

	co_arrived(self);
	for (;;) {
		self->fn(self->arg);
		self->ended = true;
		co_switch(self, self->caller);
	}
}

static void co_all_link(struct co *co)
{
	pthread_mutex_lock(&co_all_lock);
	co->all_next = co_all;
	if (co_all)
		co_all->all_prev = co;
	co_all = co;
	pthread_mutex_unlock(&co_all_lock);
}

static void co_all_unlink(struct co *co)
{
	pthread_mutex_lock(&co_all_lock);
	if (co->all_prev)
		co->all_prev->all_next = co->all_next;
	else
		co_all = co->all_next;
	if (co->all_next)
		co->all_next->all_prev = co->all_prev;
	pthread_mutex_unlock(&co_all_lock);
}

static size_t co_page(void)
{
	return (size_t)sysconf(_SC_PAGESIZE);
}

static struct co *co_new(void)
{
	struct co *co = calloc(1, sizeof(*co));
	size_t guard = co_page();
	char *map = mmap(NULL, CO_STACK_SIZE + guard, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);

	if (!co || map == MAP_FAILED || mprotect(map, guard, PROT_NONE)) {
		/* Limits on requests bound the number of stacks: this is our bug or
		 * a machine that cannot go on. */
		fputs("merino: out of memory for a coroutine\n", stderr);
		abort();
	}
	co->stack = map + guard;
	co->stack_size = CO_STACK_SIZE;
	co->valgrind_id = VALGRIND_STACK_REGISTER(co->stack, co->stack + co->stack_size);
#if defined(__SANITIZE_THREAD__)
	co->fiber = __tsan_create_fiber(0);
#endif
	co_prepare(co);
	co_all_link(co);
	return co;
}

static void co_free(struct co *co)
{
	co_all_unlink(co);
	VALGRIND_STACK_DEREGISTER(co->valgrind_id);
#if defined(__SANITIZE_THREAD__)
	__tsan_destroy_fiber(co->fiber);
#endif
#if defined(__SANITIZE_ADDRESS__)
	__asan_unpoison_memory_region(co->stack, co->stack_size);
#endif
	munmap(co->stack - co_page(), co->stack_size + co_page());
	free(co);
}

static struct co *co_get(void)
{
	struct co *co = co_pool;

	if (!co)
		return co_new();
	co_pool = co->next;
	co_pool_size--;
	return co;
}

static void co_put(struct co *co)
{
	if (co_pool_size >= CO_POOL_MAX) {
		co_free(co);
		return;
	}
	co->next = co_pool;
	co_pool = co;
	co_pool_size++;
}

void co_pool_drain(void)
{
	while (co_pool) {
		struct co *co = co_pool;

		co_pool = co->next;
		co_free(co);
	}
	co_pool_size = 0;
}

static struct co *co_here(void)
{
	if (!co_current) {
		co_current = &co_thread;
#if defined(__SANITIZE_THREAD__)
		co_thread.fiber = __tsan_get_current_fiber();
#endif
	}
	return co_current;
}

struct co *co_self(void)
{
	return co_current && co_current->stack ? co_current : NULL;
}

static void co_resume(struct co *co)
{
	struct co *here = co_here();

	assert(!co->caller);
	co->caller = here;
	co_switch(here, co);
	co->caller = NULL;
	if (co->ended)
		co_put(co);
}

void co_start(void (*fn)(void *arg), void *arg)
{
	struct co *co = co_get();

	co->fn = fn;
	co->arg = arg;
	co->ended = false;
	co->ready = false;
	co->sched = co_sched;
	co_resume(co);
}

void co_suspend(void)
{
	struct co *self = co_self();

	if (!self || !self->sched) {
		fputs("merino: bug: suspended outside a coroutine\n", stderr);
		abort();
	}
	co_switch(self, self->caller);
}

void co_wake(struct co *co)
{
	struct sched *s = co->sched;

	if (co->ready)
		return;
	assert(s && s == co_sched);
	co->ready = true;
	co->next = NULL;
	if (s->tail)
		s->tail->next = co;
	else
		s->head = co;
	s->tail = co;
}

void co_yield(void)
{
	co_wake(co_self());
	co_suspend();
}

struct sched *sched_set(struct sched *s)
{
	struct sched *former = co_sched;

	co_sched = s;
	return former;
}

unsigned sched_run(struct sched *s)
{
	struct co *last = s->tail, *co;
	unsigned n = 0;

	while ((co = s->head)) {
		s->head = co->next;
		if (!s->head)
			s->tail = NULL;
		co->ready = false;
		n++;
		bool was_last = co == last;	/* it may be on the list again after it ran */
		co_resume(co);
		if (was_last)
			break;
	}
	return n;
}

struct co_waiter {
	struct co *co;
	struct co_waiter *next;
	bool woken;
};

#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#pragma GCC diagnostic ignored "-Wdangling-pointer"	/* W is off the list before it goes */
#endif
void co_queue_wait(struct co_queue *q)
{
	struct co_waiter w = { .co = co_self() };

	if (!w.co)
		co_suspend();		/* says what is wrong and aborts */
	if (q->tail)
		q->tail->next = &w;
	else
		q->head = &w;
	q->tail = &w;
	while (!w.woken)
		co_suspend();
}

void co_queue_wake_one(struct co_queue *q)
{
	struct co_waiter *w = q->head;

	if (!w)
		return;
	q->head = w->next;
	if (!q->head)
		q->tail = NULL;
	w->woken = true;
	co_wake(w->co);
}

void co_queue_wake_all(struct co_queue *q)
{
	while (q->head)
		co_queue_wake_one(q);
}

void co_mutex_lock(struct co_mutex *m)
{
	if (!m->held) {
		m->held = true;
		return;
	}
	co_queue_wait(&m->waiters);	/* the unlocker passes it on: it stays held */
}

void co_mutex_unlock(struct co_mutex *m)
{
	assert(m->held);
	if (m->waiters.head)
		co_queue_wake_one(&m->waiters);
	else
		m->held = false;
}
