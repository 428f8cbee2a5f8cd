/* SPDX-License-Identifier: BSD-3-Clause */
/* The threads of the vCPUs: see vcpu.h.
 *
 * machine->run_lock guards who may run; machine->lock is held while a device's register
 * is read or written; run_lock may be taken inside it.
 */
#include "vmm/vcpu.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/log.h"
#include "vmm/machine.h"
#include "vmm/thread.h"

#define KICK (SIGRTMIN + 1)

/* -- what the guest leaves for --------------------------------------------------- */

static uint64_t load(const uint8_t *p, unsigned size)
{
	uint64_t value = 0;

	memcpy(&value, p, size);
	return value;
}

static void bus_access(struct bus *b, uint64_t addr, uint8_t *data, unsigned size, bool write)
{
	/* What crosses a page comes in odd pieces: no register is that wide. */
	unsigned step = size == 1 || size == 2 || size == 4 || size == 8 ? size : 1;

	for (unsigned at = 0; at < size; at += step) {
		if (write) {
			bus_write(b, addr + at, step, load(data + at, step));
		} else {
			uint64_t value = bus_read(b, addr + at, step);

			memcpy(data + at, &value, step);
		}
	}
}

static void port_access(struct vcpu *v)
{
	struct machine *m = v->machine;
	struct kvm_run *r = v->run;
	uint8_t *data = (uint8_t *)r + r->io.data_offset;

	pthread_mutex_lock(&m->lock);
	for (uint32_t i = 0; i < r->io.count; i++, data += r->io.size)
		bus_access(&m->pio, r->io.port, data, r->io.size, r->io.direction == KVM_EXIT_IO_OUT);
	pthread_mutex_unlock(&m->lock);
}

static void memory_access(struct vcpu *v)
{
	struct machine *m = v->machine;
	struct kvm_run *r = v->run;

	pthread_mutex_lock(&m->lock);
	bus_access(&m->mmio, r->mmio.phys_addr, r->mmio.data, r->mmio.len, r->mmio.is_write);
	pthread_mutex_unlock(&m->lock);
}

/* The calling vCPU, if it is one, does not run before the machine has been reset. */
static __thread struct vcpu *self;

void vcpu_hold_self(void)
{
	if (!self)
		return;
	pthread_mutex_lock(&self->machine->run_lock);
	self->held = true;
	__atomic_store_n(&self->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
	pthread_mutex_unlock(&self->machine->run_lock);
}

static void crashed(struct vcpu *v, const char *what, uint64_t detail)
{
	struct kvm_regs regs = { 0 };

	ioctl(v->fd, KVM_GET_REGS, &regs);
	log_error("%s vcpu=%u detail=0x%llx rip=0x%llx", what, v->index, (unsigned long long)detail,
		  (unsigned long long)regs.rip);
	machine_tell(v->machine, MACHINE_CRASHED);
}

static void system_event(struct vcpu *v)
{
	switch (v->run->system_event.type) {
	case KVM_SYSTEM_EVENT_SHUTDOWN:
		return machine_tell(v->machine, MACHINE_SHUTDOWN);
	case KVM_SYSTEM_EVENT_RESET:
		return machine_tell(v->machine, MACHINE_RESET);
	default:
		return crashed(v, "the guest's CPU stopped", v->run->system_event.type);
	}
}

static void serve_exit(struct vcpu *v)
{
	switch (v->run->exit_reason) {
	case KVM_EXIT_IO:
		return port_access(v);
	case KVM_EXIT_MMIO:
		return memory_access(v);
	case KVM_EXIT_SHUTDOWN:			/* a triple fault */
		return machine_tell(v->machine, MACHINE_RESET);
	case KVM_EXIT_SYSTEM_EVENT:
		return system_event(v);
	case KVM_EXIT_FAIL_ENTRY:
		return crashed(v, "KVM cannot enter the guest",
			       v->run->fail_entry.hardware_entry_failure_reason);
	case KVM_EXIT_INTERNAL_ERROR:
		return crashed(v, "KVM cannot emulate the guest", v->run->internal.suberror);
	case KVM_EXIT_INTR:
	case KVM_EXIT_IRQ_WINDOW_OPEN:
		return;
	default:
		return crashed(v, "KVM gave up the guest", v->run->exit_reason);
	}
}

/* -- a vCPU's thread -------------------------------------------------------------- */

/* Parks until the guest may go on; false: the machine ends. */
static bool wait_for_go(struct vcpu *v)
{
	struct machine *m = v->machine;
	bool go;

	pthread_mutex_lock(&m->run_lock);
	m->parked++;
	pthread_cond_broadcast(&m->parked_more);
	while (!m->ending && (!m->running || v->held))
		pthread_cond_wait(&m->go, &m->run_lock);
	m->parked--;
	v->run->immediate_exit = 0;
	go = !m->ending;
	pthread_mutex_unlock(&m->run_lock);
	return go;
}

/* Until somebody wants it parked. */
static void run(struct vcpu *v)
{
	for (;;) {
		if (ioctl(v->fd, KVM_RUN, 0) == 0) {
			serve_exit(v);
			continue;
		}
		if (errno == EINTR)
			return;
		if (errno == EAGAIN)
			continue;
		crashed(v, "KVM_RUN", (uint64_t)errno);
		return;
	}
}

static void *vcpu_main(void *arg)
{
	struct vcpu *v = arg;

	self = v;
	v->tid = gettid();
	while (wait_for_go(v))
		run(v);
	return NULL;
}

static void kicked(int signo)
{
}

/* Held by run_lock: a vCPU that may run has seen it, or will see immediate_exit. */
static void kick_all(struct machine *m)
{
	for (unsigned i = 0; i < m->n_vcpus; i++) {
		__atomic_store_n(&m->vcpu[i].run->immediate_exit, 1, __ATOMIC_SEQ_CST);
		if (m->vcpu[i].started)
			pthread_kill(m->vcpu[i].thread, KICK);
	}
}

/* -- all of them ------------------------------------------------------------------ */

void vcpus_go(struct machine *m)
{
	pthread_mutex_lock(&m->run_lock);
	m->running = true;
	pthread_cond_broadcast(&m->go);
	pthread_mutex_unlock(&m->run_lock);
}

void vcpus_park(struct machine *m)
{
	pthread_mutex_lock(&m->run_lock);
	m->running = false;
	kick_all(m);
	while (m->parked < m->n_vcpus)
		pthread_cond_wait(&m->parked_more, &m->run_lock);
	pthread_mutex_unlock(&m->run_lock);
}

static int vcpu_make(struct machine *m, unsigned index, struct error *err)
{
	struct vcpu *v = &m->vcpu[index];
	int len = ioctl(m->kvm, KVM_GET_VCPU_MMAP_SIZE, 0), rc;
	pthread_attr_t attr;
	char name[16];

	*v = (struct vcpu){ .machine = m, .index = index, .run = MAP_FAILED };
	v->fd = ioctl(m->vm, KVM_CREATE_VCPU, index);
	if (v->fd < 0)
		return error_errno(err, -errno, "KVM_CREATE_VCPU");
	m->n_vcpus++;
	v->run_len = (size_t)len;
	v->run = mmap(NULL, v->run_len, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, 0);
	if (v->run == MAP_FAILED)
		return error_errno(err, -errno, "cannot map a vCPU");
	rc = cpuid_set(v, err);
	if (rc)
		return rc;
	v->first = malloc(sizeof(*v->first));
	if (!v->first)
		return error_set(err, -ENOMEM, "Out of memory");
	rc = vcpu_save(v, v->first, err);
	if (rc)
		return rc;
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 256 << 10);
	snprintf(name, sizeof(name), "vcpu%u", v->index);
	rc = thread_start(&v->thread, name, &attr, vcpu_main, v);
	pthread_attr_destroy(&attr);
	v->started = !rc;
	return rc ? error_errno(err, rc, "cannot start a thread for a vCPU") : 0;
}

int vcpus_make(struct machine *m, struct error *err)
{
	struct sigaction sa = { .sa_handler = kicked };
	int rc = 0;

	sigaction(KICK, &sa, NULL);
	m->vcpu = calloc(m->config->vcpus, sizeof(*m->vcpu));
	if (!m->vcpu)
		return error_set(err, -ENOMEM, "Out of memory");
	rc = vcpu_learn_msrs(m, err);
	for (unsigned i = 0; i < m->config->vcpus && !rc; i++)
		rc = vcpu_make(m, i, err);
	return rc;
}

void vcpus_end(struct machine *m)
{
	pthread_mutex_lock(&m->run_lock);
	m->ending = true;
	m->running = false;
	for (unsigned i = 0; i < m->n_vcpus; i++)
		if (m->vcpu[i].started)
			__atomic_store_n(&m->vcpu[i].run->immediate_exit, 1, __ATOMIC_SEQ_CST);
	pthread_cond_broadcast(&m->go);
	pthread_mutex_unlock(&m->run_lock);
	for (unsigned i = 0; i < m->n_vcpus; i++) {
		struct vcpu *v = &m->vcpu[i];

		if (v->started) {
			pthread_kill(v->thread, KICK);
			pthread_join(v->thread, NULL);
		}
		if (v->run != MAP_FAILED)
			munmap(v->run, v->run_len);
		close(v->fd);
		free(v->first);
	}
	free(m->vcpu);
	free(m->msrs);
	m->msrs = NULL;
	m->vcpu = NULL;
	m->n_vcpus = 0;
}
