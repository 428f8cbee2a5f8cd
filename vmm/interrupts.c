/* SPDX-License-Identifier: BSD-3-Clause */
/* Interrupt controllers and routes: see interrupts.h.
 *
 * Global interrupt numbers (GSIs) 0 to 23 are the lines of PIC and IOAPIC, line 0 at the
 * IOAPIC's pin 2 as on PCs; what follows is one number for each message-signalled
 * interrupt.  A masked one is taken off its eventfd, so that what is signalled meanwhile
 * waits in it and comes when it is unmasked.
 */
#include "vmm/interrupts.h"

#include <errno.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "common/log.h"
#include "vmm/machine.h"

#define LINES 24u
#define MSI_MAX 2048u
#define FIXED (8u + 8u + LINES)		/* entries at most, for the lines */

struct msi {
	bool used, attached;
	int fd;
	uint64_t addr;
	uint32_t data;
};

struct interrupts {
	struct msi msi[MSI_MAX];
	unsigned n_msi;			/* slots ever used */
	struct interrupts_state first;	/* as KVM made them */
	struct {
		struct kvm_irq_routing head;
		struct kvm_irq_routing_entry entry[FIXED + MSI_MAX];
	} table;
};

static void add_line(struct interrupts *i, unsigned gsi, unsigned chip, unsigned pin)
{
	i->table.entry[i->table.head.nr++] = (struct kvm_irq_routing_entry){
		.gsi = gsi, .type = KVM_IRQ_ROUTING_IRQCHIP,
		.u.irqchip = { .irqchip = chip, .pin = pin },
	};
}

/* Writes the table anew and hands it to KVM. */
static int routes_set(struct machine *m)
{
	struct interrupts *i = m->interrupts;

	i->table.head = (struct kvm_irq_routing){ 0 };
	for (unsigned n = 0; n < 16; n++)
		if (n != 2)
			add_line(i, n, n < 8 ? KVM_IRQCHIP_PIC_MASTER : KVM_IRQCHIP_PIC_SLAVE, n & 7);
	for (unsigned n = 0; n < LINES; n++)
		if (n != 2)
			add_line(i, n, KVM_IRQCHIP_IOAPIC, n ? n : 2);
	for (unsigned n = 0; n < i->n_msi; n++) {
		const struct msi *s = &i->msi[n];

		if (!s->used)
			continue;
		i->table.entry[i->table.head.nr++] = (struct kvm_irq_routing_entry){
			.gsi = LINES + n, .type = KVM_IRQ_ROUTING_MSI,
			.u.msi = { .address_lo = (uint32_t)s->addr,
				   .address_hi = (uint32_t)(s->addr >> 32), .data = s->data },
		};
	}
	return ioctl(m->vm, KVM_SET_GSI_ROUTING, &i->table) < 0 ? -errno : 0;
}

static int attach(struct machine *m, unsigned n, bool on)
{
	struct msi *s = &m->interrupts->msi[n];
	struct kvm_irqfd fd = {
		.fd = (uint32_t)s->fd, .gsi = LINES + n,
		.flags = on ? 0 : KVM_IRQFD_FLAG_DEASSIGN,
	};

	if (s->attached == on)
		return 0;
	if (ioctl(m->vm, KVM_IRQFD, &fd) < 0)
		return -errno;
	s->attached = on;
	return 0;
}

/* -- what devices call ---------------------------------------------------------- */

void machine_irq(struct machine *m, unsigned line, bool level)
{
	struct kvm_irq_level l = { .irq = line, .level = level };

	ioctl(m->vm, KVM_IRQ_LINE, &l);
}

int machine_msi_add(struct machine *m, int fd, uint64_t addr, uint32_t data)
{
	struct interrupts *i = m->interrupts;
	unsigned n = 0;
	int rc;

	while (n < i->n_msi && i->msi[n].used)
		n++;
	if (n == MSI_MAX)
		return -ENOSPC;
	if (n == i->n_msi)
		i->n_msi++;
	i->msi[n] = (struct msi){ .used = true, .fd = fd, .addr = addr, .data = data };
	rc = routes_set(m);
	if (!rc)
		rc = attach(m, n, true);
	if (rc) {
		machine_msi_remove(m, (int)n);
		return rc;
	}
	return (int)n;
}

int machine_msi_set(struct machine *m, int route, uint64_t addr, uint32_t data, bool masked)
{
	struct msi *s;
	bool changed;
	int rc;

	if (route < 0 || (unsigned)route >= m->interrupts->n_msi || !m->interrupts->msi[route].used)
		return -EINVAL;
	s = &m->interrupts->msi[route];
	if (masked)
		return attach(m, (unsigned)route, false);
	changed = s->addr != addr || s->data != data;
	s->addr = addr;
	s->data = data;
	rc = changed ? routes_set(m) : 0;
	return rc ? rc : attach(m, (unsigned)route, true);
}

void machine_msi_remove(struct machine *m, int route)
{
	if (route < 0 || (unsigned)route >= m->interrupts->n_msi || !m->interrupts->msi[route].used)
		return;
	attach(m, (unsigned)route, false);
	m->interrupts->msi[route] = (struct msi){ 0 };
	routes_set(m);
}

int machine_msi_raise(struct machine *m, uint64_t addr, uint32_t data)
{
	struct kvm_msi msi = {
		.address_lo = (uint32_t)addr, .address_hi = (uint32_t)(addr >> 32), .data = data,
	};

	return ioctl(m->vm, KVM_SIGNAL_MSI, &msi) < 0 ? -errno : 0;
}

int machine_doorbell(struct machine *m, uint64_t addr, unsigned size, int fd, bool on)
{
	struct kvm_ioeventfd e = {
		.addr = addr, .len = size, .fd = fd,
		.flags = on ? 0 : KVM_IOEVENTFD_FLAG_DEASSIGN,
	};

	return ioctl(m->vm, KVM_IOEVENTFD, &e) < 0 ? -errno : 0;
}

/* -- the controllers ------------------------------------------------------------- */

int interrupts_save(struct machine *m, struct interrupts_state *s, struct error *err)
{
	s->version = 1;
	for (unsigned n = 0; n < 3; n++) {
		s->chip[n].chip_id = n;
		if (ioctl(m->vm, KVM_GET_IRQCHIP, &s->chip[n]) < 0)
			return error_errno(err, -errno, "KVM_GET_IRQCHIP");
	}
	return ioctl(m->vm, KVM_GET_PIT2, &s->pit) < 0 ? error_errno(err, -errno, "KVM_GET_PIT2") : 0;
}

/* What is in them KVM checks itself. */
int interrupts_load(struct machine *m, const struct interrupts_state *s, struct error *err)
{
	if (s->version != 1)
		return error_set(err, -EINVAL, "interrupt controllers: state of an unknown version");
	for (unsigned n = 0; n < 3; n++) {
		if (s->chip[n].chip_id != n)
			return error_set(err, -EINVAL, "interrupt controllers: there is no such one");
		if (ioctl(m->vm, KVM_SET_IRQCHIP, &s->chip[n]) < 0)
			return error_errno(err, -errno, "KVM_SET_IRQCHIP");
	}
	return ioctl(m->vm, KVM_SET_PIT2, &s->pit) < 0 ? error_errno(err, -errno, "KVM_SET_PIT2") : 0;
}

int interrupts_start(struct machine *m, struct error *err)
{
	/* The speaker's port is a dummy in the kernel: nobody probes for what is missing. */
	struct kvm_pit_config pit = { .flags = KVM_PIT_SPEAKER_DUMMY };
	int rc;

	m->interrupts = calloc(1, sizeof(*m->interrupts));
	if (!m->interrupts)
		return error_set(err, -ENOMEM, "Out of memory");
	if (ioctl(m->vm, KVM_CREATE_IRQCHIP) < 0)
		return error_errno(err, -errno, "KVM_CREATE_IRQCHIP");
	if (ioctl(m->vm, KVM_CREATE_PIT2, &pit) < 0)
		return error_errno(err, -errno, "KVM_CREATE_PIT2");
	rc = routes_set(m);
	if (rc)
		return error_errno(err, rc, "KVM_SET_GSI_ROUTING");
	return interrupts_save(m, &m->interrupts->first, err);
}

void interrupts_reset(struct machine *m)
{
	struct error err = ERROR_INIT;

	if (interrupts_load(m, &m->interrupts->first, &err))
		log_error("reset: %s", err.text);
}

void interrupts_end(struct machine *m)
{
	free(m->interrupts);
	m->interrupts = NULL;
}
