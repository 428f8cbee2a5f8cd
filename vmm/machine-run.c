/* SPDX-License-Identifier: BSD-3-Clause */
/* A machine's states: runs, pauses, resets, and what the guest did.  See machine.h.
 *
 *	PRELAUNCH ─run▶ RUNNING ◀run/pause▶ PAUSED
 *	RUNNING ─the guest powers off▶ SHUTDOWN		run goes nowhere before a reset
 *	RUNNING ─KVM cannot go on▶ INTERNAL_ERROR	the same
 *
 * The guest's clock stands while the machine is paused, and its memory does not change.
 */
#include <errno.h>
#include <linux/kvm.h>
#include <stddef.h>
#include <sys/ioctl.h>

#include "common/log.h"
#include "vmm/boot.h"
#include "vmm/cmos.h"
#include "vmm/interrupts.h"
#include "vmm/machine.h"
#include "vmm/pci.h"
#include "vmm/platform.h"
#include "vmm/serial.h"
#include "vmm/vcpu.h"

const char *run_state_name(enum run_state s)
{
	static const char *const names[] = {
		"prelaunch", "running", "paused", "shutdown", "internal-error",
	};

	return names[s];
}

/* -- the guest's clock ------------------------------------------------------------- */

static void clock_stop(struct machine *m)
{
	struct kvm_clock_data c = { 0 };

	m->clock_valid = ioctl(m->vm, KVM_GET_CLOCK, &c) == 0;
	m->clock = c.clock;
}

static void clock_go(struct machine *m)
{
	struct kvm_clock_data c = { .clock = m->clock };

	if (!m->clock_valid)
		return;
	ioctl(m->vm, KVM_SET_CLOCK, &c);
	/* No guest takes the pause for a CPU that hangs. */
	for (unsigned i = 0; i < m->n_vcpus; i++)
		ioctl(m->vcpu[i].fd, KVM_KVMCLOCK_CTRL, 0);
	m->clock_valid = false;
}

/* -- states -------------------------------------------------------------------------- */

void machine_run(struct machine *m)
{
	if (m->state != RUN_PRELAUNCH && m->state != RUN_PAUSED)
		return;
	clock_go(m);
	m->state = RUN_RUNNING;
	pthread_mutex_lock(&m->lock);
	pci_rest(m, false);
	pthread_mutex_unlock(&m->lock);
	vcpus_go(m);
}

static void stop(struct machine *m, enum run_state s)
{
	if (m->state == RUN_RUNNING) {
		vcpus_park(m);
		pthread_mutex_lock(&m->lock);
		pci_rest(m, true);
		pthread_mutex_unlock(&m->lock);
		clock_stop(m);
	}
	m->state = s;
}

void machine_pause(struct machine *m)
{
	if (m->state == RUN_RUNNING)
		stop(m, RUN_PAUSED);
}

int machine_boot(struct machine *m, struct error *err)
{
	struct vcpu_entry entry = { .mode = VCPU_REAL };
	int rc = boot_load(m, &entry, err);

	if (!rc && entry.mode != VCPU_REAL) {		/* no firmware does it */
		pthread_mutex_lock(&m->lock);
		pci_place_bars(m);
		pthread_mutex_unlock(&m->lock);
	}
	return rc ? rc : vcpu_enter_at(&m->vcpu[0], &entry, err);
}

void machine_reset(struct machine *m)
{
	struct error err = ERROR_INIT;
	bool go = m->state == RUN_RUNNING;
	int rc;

	stop(m, m->state == RUN_RUNNING || m->state == RUN_PAUSED ? RUN_PAUSED : RUN_PRELAUNCH);
	pthread_mutex_lock(&m->lock);
	pci_reset(m);
	platform_reset(m);
	cmos_reset(m);
	serial_reset(m);
	interrupts_reset(m);
	pthread_mutex_unlock(&m->lock);
	vcpus_reset(m);
	rc = machine_boot(m, &err);
	if (rc) {
		log_error("reset: %s", err.text);
		m->state = RUN_INTERNAL_ERROR;
		return;
	}
	if (go)
		machine_run(m);
}

void machine_powerdown(struct machine *m)
{
	pthread_mutex_lock(&m->lock);
	platform_button(m);
	pthread_mutex_unlock(&m->lock);
}

/* -- what the guest did -------------------------------------------------------------- */

static void told(struct loop_msg *msg)
{
	struct machine *m = (struct machine *)((char *)msg - offsetof(struct machine, tell));
	unsigned bits = __atomic_exchange_n(&m->told, 0, __ATOMIC_SEQ_CST);

	if (bits & 1u << MACHINE_CRASHED)
		stop(m, RUN_INTERNAL_ERROR);
	else if (bits & 1u << MACHINE_SHUTDOWN)
		stop(m, RUN_SHUTDOWN);
	for (enum machine_event e = MACHINE_SHUTDOWN; e <= MACHINE_QUIT; e++)
		if (bits & 1u << e && m->event)
			m->event(m, e);
}

void machine_tell(struct machine *m, enum machine_event e)
{
	vcpu_hold_self();
	if (__atomic_fetch_or(&m->told, 1u << e, __ATOMIC_SEQ_CST) == 0) {
		m->tell.fn = told;
		loop_post(m->main, &m->tell);
	}
}
