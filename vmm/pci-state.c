// SPDX-License-Identifier: BSD-3-Clause
/* pci-state: a device's configuration space and vectors, saved and loaded.
 *
 * The bits that no guest can change say what the device is: in a saved state they must be those
 * of the device that loads it.
 */
#include <errno.h>
#include <string.h>

#include "vmm/state.h"

int pci_save(struct pci_device *d, struct device_state *s, struct error *err)
{
	s->pci.version = 1;
	memcpy(s->pci.config, d->config, sizeof(s->pci.config));
	pci_msix_save(d, &s->pci);
	return d->class->save ? d->class->save(d, s, err) : 0;
}

static bool is_same_device(const struct pci_device *d, const struct pci_state *s)
{
	if (s->version != 1 || s->n_vectors != d->n_vectors)
		return false;
	for (unsigned i = 0; i < PCI_CONFIG_BYTES; i++)
		if ((s->config[i] ^ d->config[i]) & ~d->writable[i])
			return false;
	return true;
}

int pci_load(struct pci_device *d, const struct device_state *s, struct error *err)
{
	if (!is_same_device(d, &s->pci))
		return error_set(err, -EINVAL, "slot %u: the state is another device's", d->slot);
	memcpy(d->config, s->pci.config, sizeof(d->config));
	pci_bar_sync(d);
	if (!pci_msix_load(d, &s->pci))
		return error_set(err, -EINVAL, "slot %u: vectors that there are not", d->slot);
	return d->class->load ? d->class->load(d, s, err) : 0;
}
