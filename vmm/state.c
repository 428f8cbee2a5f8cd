/* SPDX-License-Identifier: BSD-3-Clause */
/* A machine's state as a whole: see state.h.
 *
 * Order of loading: interrupt controllers, then vCPUs (a controller that has something pending
 * passes it on at once, and the vCPU's own state is what counts), then devices, which may raise
 * what was pending.
 */
#include "vmm/state.h"

#include <errno.h>
#include <string.h>

static int check_rest(const struct machine *m, struct error *err)
{
	if (m->state != RUN_PAUSED && m->state != RUN_PRELAUNCH)
		return error_set(err, -EINVAL, "the machine is %s", run_state_name(m->state));
	if (__atomic_load_n(&m->told, __ATOMIC_SEQ_CST))
		return error_set(err, -EBUSY, "the guest has just asked for a reset or its end");
	return 0;
}

static uint32_t slots(const struct machine *m)
{
	uint32_t bits = 0;

	for (unsigned i = 0; i < PCI_DEVICES_MAX; i++)
		bits |= m->pci->device[i] ? 1u << i : 0;
	return bits;
}

/* -- save ---------------------------------------------------------------------------------- */

static int save_devices(struct machine *m, struct machine_state *s, struct error *err)
{
	int rc = interrupts_save(m, &s->interrupts, err);

	platform_save(m, &s->platform);
	cmos_save(m, &s->cmos);
	serial_save(m, &s->serial);
	if (m->fw_cfg)
		fw_cfg_save(m, &s->fw_cfg);
	s->has_fw_cfg = m->fw_cfg != NULL;
	s->pci_address = m->pci->address;
	s->slots = slots(m);
	for (unsigned i = 0; i < PCI_DEVICES_MAX && !rc; i++)
		if (m->pci->device[i])
			rc = pci_save(m->pci->device[i], &s->device[i], err);
	return rc;
}

int machine_save(struct machine *m, struct machine_state *s, struct error *err)
{
	int rc = check_rest(m, err);

	if (rc)
		return rc;
	memset(s, 0, sizeof(*s));
	s->version = 1;
	s->n_vcpus = m->n_vcpus;
	s->memory = m->memory.size;
	s->clock = m->clock;
	s->clock_valid = m->clock_valid;
	for (unsigned i = 0; i < m->n_vcpus && !rc; i++)
		rc = vcpu_save(&m->vcpu[i], &s->vcpu[i], err);
	if (rc)
		return rc;
	pthread_mutex_lock(&m->lock);
	rc = save_devices(m, s, err);
	pthread_mutex_unlock(&m->lock);
	return rc;
}

/* -- load ---------------------------------------------------------------------------------- */

static int check(const struct machine *m, const struct machine_state *s, struct error *err)
{
	if (s->version != 1 || s->clock_valid > 1 || s->has_fw_cfg > 1)
		return error_set(err, -EINVAL, "no state of a machine, or one of an unknown version");
	if (s->n_vcpus != m->n_vcpus || s->memory != m->memory.size)
		return error_set(err, -EINVAL, "the saved machine has %u CPUs and %llu bytes of memory",
				 s->n_vcpus, (unsigned long long)s->memory);
	if (s->slots != slots(m) || s->has_fw_cfg != (m->fw_cfg != NULL))
		return error_set(err, -EINVAL, "the saved machine has other devices");
	return 0;
}

static int load_devices(struct machine *m, const struct machine_state *s, struct error *err)
{
	int rc = platform_load(m, &s->platform, err);

	if (!rc)
		rc = cmos_load(m, &s->cmos, err);
	if (!rc)
		rc = serial_load(m, &s->serial, err);
	if (!rc && m->fw_cfg)
		rc = fw_cfg_load(m, &s->fw_cfg, err);
	for (unsigned i = 0; i < PCI_DEVICES_MAX && !rc; i++)
		if (m->pci->device[i])
			rc = pci_load(m->pci->device[i], &s->device[i], err);
	return rc;
}

static int load_all(struct machine *m, const struct machine_state *s, struct error *err)
{
	int rc;

	pthread_mutex_lock(&m->lock);
	pci_reset(m);
	m->pci->address = s->pci_address;
	rc = interrupts_load(m, &s->interrupts, err);
	for (unsigned i = 0; i < m->n_vcpus && !rc; i++)
		rc = vcpu_load(&m->vcpu[i], &s->vcpu[i], err);
	if (!rc)
		rc = load_devices(m, s, err);
	pthread_mutex_unlock(&m->lock);
	return rc;
}

int machine_load(struct machine *m, const struct machine_state *s, struct error *err)
{
	int rc = check_rest(m, err);

	if (!rc)
		rc = check(m, s, err);
	if (rc)
		return rc;
	rc = load_all(m, s, err);
	m->clock = s->clock;
	m->clock_valid = s->clock_valid;
	m->state = rc ? RUN_INTERNAL_ERROR : RUN_PAUSED;
	return rc;
}
